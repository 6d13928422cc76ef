"""The peer's side of ``benchmarks.step``: TRL's DistillationTrainer, held before each step until it is asked.

Runs in the environment ``.venv-trl``. Same requests and answers as ``benchmarks.step_worker``; here
``{"do": "loss", ...}`` brings the tokens and gets TRL's loss of them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from benchmarks.channel import Caller, cpu_seconds, peak_rss_mb

NO_TOKEN = -1
REVERSE_KL = 1.0


def padded(rows: list[list[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (B, T)."""
    width = max(map(len, rows))
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids_BT[index, place] = torch.tensor(row)
        mask_BT[index, place] = 1
    return ids_BT, mask_BT


class Peer(DistillationTrainer):
    """Counts the response tokens that it trains on."""

    counted = 0

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.counted = int(output["completion_mask"].sum())
        self.prompt_tokens = int(output["prompt_mask"].sum())
        return output

    def loss_of(self, prompts: list[list[int]], responses: list[list[int]]) -> float:
        prompt_ids, prompt_mask = padded(prompts, left=True)
        completion_ids, completion_mask = padded(responses, left=False)
        inputs = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
        }
        with torch.no_grad():
            loss, _, _ = self._compute_loss(self.accelerator.unwrap_model(self.model), inputs, None)
        return float(loss)


class Gate(TrainerCallback):
    """Waits before each step, answers after it."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.trainer: Peer | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        assert self.trainer is not None
        if state.global_step == 0:
            self.caller.answer(ready=True)
        try:
            request = self.caller.wait()
            while request["do"] == "loss":
                self.caller.answer(loss=self.trainer.loss_of(request["prompt_ids"], request["response_ids"]))
                request = self.caller.wait()
        except EOFError:
            os._exit(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        assert self.trainer is not None
        self.caller.answer(
            response_tokens=self.trainer.counted,
            prompt_tokens=self.trainer.prompt_tokens,
            peak_rss_mb=peak_rss_mb(),
            cpu_seconds=cpu_seconds(),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="one rendered prompt a line")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    options = parser.parse_args()
    caller = Caller()
    torch.set_num_threads(os.cpu_count() or 1)

    texts = [json.loads(line)["prompt"] for line in options.prompts.read_text().splitlines()]
    gate = Gate(caller)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Peer(
            model=AutoModelForCausalLM.from_pretrained(options.student, dtype=torch.float32),
            teacher_model=AutoModelForCausalLM.from_pretrained(options.teacher, dtype=torch.float32),
            args=DistillationConfig(
                output_dir=folder,
                per_device_train_batch_size=options.rows,
                max_steps=len(texts) // options.rows,
                max_completion_length=options.new_tokens,
                beta=REVERSE_KL,
                learning_rate=5e-6,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,
                shuffle_dataset=False,
                save_strategy="no",
                report_to=[],
                logging_steps=1,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=AutoTokenizer.from_pretrained(options.teacher),
            callbacks=[gate],
        )
        # No token ends a response: both sides make all of them.
        trainer.eos_token_ids = [NO_TOKEN]
        for config in (trainer.generation_config, trainer.model.generation_config):
            config.eos_token_id = None
        gate.trainer = trainer
        trainer.train()


if __name__ == "__main__":
    main()
