"""Our side of ``benchmarks.step``: the real training loop, held at each step boundary until it is asked to go on.

Answers ``{"do": "loss"}`` (the loss of one batch before training, with its tokens) and ``{"do": "step"}``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.channel import Caller, cpu_seconds, peak_rss_mb
from minillm_core.data.dataset import TokenizedRow
from minillm_core.data.sampler import EpochCursor
from minillm_core.data.templates import encode_prompt
from minillm_core.models.families import disable_dropout
from minillm_core.rollout.decoder import Decoder, make_decoder
from minillm_core.spec import JobSpec, Phase
from minillm_core.train.batches import response_batch
from minillm_core.train.checkpoints import Checkpoints, RunState
from minillm_core.train.distributed import Ranks
from minillm_core.train.events import EventLog
from minillm_core.train.loop import PhasePlan, Run, train_phase
from minillm_core.train.memory import drop_mapped_pages, give_back_freed_memory
from minillm_core.train.methods import Method, resolve_method
from minillm_core.train.progress import Progress
from minillm_core.train.rollouts import Sampling, draw
from minillm_core.train.rounds import TrainRow, derived_seed
from minillm_core.train.selection import Selection
from minillm_core.train.stop import StopFlag
from minillm_core.train.student import StudentModule, loss_head

PHASE = Phase.TRAINING
_MANY_STEPS = 1000


def job_spec(rows: int, new_tokens: int, decode_dtype: str) -> JobSpec:
    """One on-policy step a round: alpha 0, one inner epoch, the reverse KL at every sampled position."""
    return JobSpec.model_validate(
        {
            "teacher": {"model": "path:teacher"},
            "student": {"model": "path:student"},
            "dataset": {"file": "path:prompts"},
            "method": {
                "type": "minillm",
                "teacher_mix_alpha": 0.0,
                "rollouts_per_round": rows,
                "inner_epochs": 1,
                "long_part": False,
            },
            "training": {
                "max_steps": _MANY_STEPS,
                "rows_per_step": rows,
                "max_new_tokens": new_tokens,
                "dtype": "float32",
                "decode_dtype": decode_dtype,
                "eval_every": _MANY_STEPS,
                "save_every": _MANY_STEPS,
            },
            "guards": {"enabled": False},
            "resources": {"gpus": 0, "zero_stage": 0},
        }
    )


class Recorder(EventLog):
    """The run's event log, which also keeps the values since the last step."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self.values: dict[str, float] = {}

    def metrics(self, phase: Phase, step: int, values: Mapping[str, float]) -> None:
        super().metrics(phase, step, values)
        self.values.update(values)


class Unchosen(Selection):
    """No dev set: the weights of a benchmark's student are not compared."""

    def __init__(self) -> None:
        object.__setattr__(self, "criterion", "loss")

    def score(self, model: torch.nn.Module, decoder: Decoder | None) -> tuple[dict[str, float], float]:
        return {}, 0.0


class Finished(Exception):
    """Nobody asks for more steps."""


class Gate(StopFlag):
    """Read by the loop after each round and after each step; after a step it waits for a request."""

    def __init__(self, caller: Caller, recorder: Recorder, rows: int) -> None:
        super().__init__()
        self._caller, self._recorder, self._rows = caller, recorder, rows
        self._looks = 0

    def agreed(self, ranks: Ranks) -> bool:
        self._looks += 1
        if self._looks % 2 == 0:
            values = self._recorder.values
            tokens = round(values["response_tokens"] * self._rows)
            memory, cpu = peak_rss_mb(), cpu_seconds()
            self._caller.answer(response_tokens=tokens, values=values, peak_rss_mb=memory, cpu_seconds=cpu)
            self._recorder.values = {}
            wait_for_step(self._caller)
        return super().agreed(ranks)


def wait_for_step(caller: Caller) -> None:
    try:
        caller.wait()
    except EOFError:
        raise Finished from None


def first_loss(
    student: PreTrainedModel, teacher: Decoder, method: Method, rows: list[TokenizedRow], sampling: Sampling
) -> dict[str, Any]:
    """The loss of responses drawn from the teacher, per token, and those responses."""
    prompts = [row.prompt_ids for row in rows]
    drawn = draw(
        teacher,
        teacher,
        prompts,
        list(range(len(rows))),
        sampling,
        alpha=0.0,
        temperature=1.0,
        seed=1,
        keep_teacher_hidden=True,
    )
    teacher.release()  # at alpha 0 it never decodes in the steps that follow
    assert drawn.teacher_hidden is not None
    train_rows = [
        TrainRow(
            prompt_ids=prompt,
            response_ids=response,
            student_logp_T=logp_T,
            teacher_hidden_TD=hidden_TD,
            returns_T=torch.zeros_like(logp_T),
            weights_T=torch.ones_like(logp_T),
        )
        for prompt, response, logp_T, hidden_TD in zip(
            prompts, drawn.response_ids, drawn.student_logp, drawn.teacher_hidden, strict=True
        )
    ]
    head = loss_head(teacher.head, sampling.vocab)
    module = StudentModule(student, vocab=sampling.vocab, teacher_head=head, zero_stage=0)
    advantages = [row.returns_T for row in train_rows if row.returns_T is not None]
    with torch.no_grad():
        batch = response_batch(train_rows, advantages, None, device=torch.device("cpu"))
        loss, _ = module(batch, method)
    return {"loss": float(loss) / batch.tokens, "prompt_ids": prompts, "response_ids": drawn.response_ids}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="one rendered prompt a line")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--decode-dtype", choices=["float32", "bfloat16"], required=True)
    options = parser.parse_args()
    caller = Caller()

    ranks = Ranks.start()
    job = job_spec(options.rows, options.new_tokens, options.decode_dtype)
    method = resolve_method(job)
    tokenizer = AutoTokenizer.from_pretrained(options.teacher)
    whole = AutoModelForCausalLM.from_pretrained(options.teacher, dtype=torch.float32).eval().requires_grad_(False)
    student = AutoModelForCausalLM.from_pretrained(options.student, dtype=torch.float32).eval()
    disable_dropout(student)
    # No token ends a response: both sides make all of them.
    sampling = Sampling(
        eos_ids=[], vocab=whole.config.vocab_size, max_new_tokens=options.new_tokens, batch_rows=options.rows
    )
    teacher = make_decoder(whole, scores=True)
    drop_mapped_pages(whole.parameters())
    del whole
    texts = [json.loads(line)["prompt"] for line in options.prompts.read_text().splitlines()]
    rows = [TokenizedRow(encode_prompt(text, "chat", tokenizer), [], text, "", False) for text in texts]
    # The peer takes the prompts in the order in which the loop will.
    order = EpochCursor(len(rows), derived_seed(derived_seed(job.seed, PHASE.value), "rows")).take(len(rows))
    lengths = [len(row.prompt_ids) for row in rows]
    caller.answer(order=[int(row) for row in order], prompt_tokens=statistics.mean(lengths), lengths=lengths)
    pad = int(tokenizer.eos_token_id)
    try:
        request = caller.wait()
        while request["do"] == "loss":
            caller.answer(**first_loss(student, teacher, method, rows[: options.rows], sampling))
            give_back_freed_memory()  # as after each measurement of a run
            request = caller.wait()
    except EOFError:
        return

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        recorder = Recorder(run_dir)
        run = Run(
            job=job,
            ranks=ranks,
            events=recorder,
            progress=Progress({PHASE.value: 1.0}, recorder),
            checkpoints=Checkpoints(run_dir, ranks, recorder, keep=1),
            stop=Gate(caller, recorder, options.rows),
            state=RunState(),
            sampling=sampling,
            pad_id=pad,
            vocab=sampling.vocab,
        )
        try:
            train_phase(
                run,
                name=PHASE.value,
                phase=PHASE,
                method=method,
                plan=PhasePlan.of_training(job.training),
                model=student,
                teacher=teacher,
                rows=rows,
                selection=Unchosen(),
                resume_from=None,
                round_=None,
                random_state=None,
            )
        except Finished:
            pass
        finally:
            recorder.close()
    ranks.close()


if __name__ == "__main__":
    main()
