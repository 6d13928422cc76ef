"""What does a whole MiniLLM round cost, and who computes how many tokens?

    python -m benchmarks.round [--quick]

A round samples responses from the mixture of student and teacher (alpha 0.2) and trains on them for
four inner epochs with the single-step and the long part, through the trainer's own functions and
its DeepSpeed engine. Beside it, in this process and in turn, runs the naive schedule of
``benchmarks.naive``. No token ends a response, so that both make equally many.

The last line is one JSON object:

    round_s, naive_round_s         seconds of a round, median
    speedup_over_naive             median of the ratios of neighbouring rounds
    counters, naive_counters       positions computed by each model, and decoding steps
    teacher_token_ratio            the teacher's positions over the rollouts' tokens, prompts included
    mixed_over_student             tokens per second of mixed sampling over the student's alone
    mixed_over_naive               the same over the naive mixed sampler

Axes: B rows, T positions.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks import machine, naive
from benchmarks.prompts import CACHE, make_prompts, student_folder, teacher_folder
from minillm_core.data.dataset import TokenizedRow
from minillm_core.data.templates import encode_prompt
from minillm_core.rollout.decoder import Decoder, make_decoder
from minillm_core.rollout.sampling import RolloutCounters
from minillm_core.spec import JobSpec
from minillm_core.train.distributed import Ranks
from minillm_core.train.engine import TORCH_DTYPES, Engine
from minillm_core.train.methods import Method, resolve_method
from minillm_core.train.rollouts import Sampling, collect_round, draw
from minillm_core.train.step import train_step
from minillm_core.train.student import StudentModule, loss_head


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def job_spec(options: argparse.Namespace) -> JobSpec:
    return JobSpec.model_validate(
        {
            "teacher": {"model": "path:teacher", "dtype": options.teacher_dtype},
            "student": {"model": "path:student"},
            "dataset": {"file": "path:prompts"},
            "method": {
                "type": "minillm",
                "teacher_mix_alpha": options.alpha,
                "rollouts_per_round": options.rollouts,
                "inner_epochs": options.inner_epochs,
            },
            "training": {
                "rows_per_step": options.rows_per_step,
                "max_new_tokens": options.new_tokens,
                "dtype": "float32",
                "decode_dtype": options.decode_dtype,
            },
            "resources": {"gpus": 0, "zero_stage": 0},
        }
    )


class Ours:
    """The trainer's own parts, put together as its loop does."""

    def __init__(self, options: argparse.Namespace, teacher: PreTrainedModel, student: PreTrainedModel) -> None:
        self.options, self.student = options, student
        self.job = job_spec(options)
        self.method: Method = resolve_method(self.job)
        self.ranks = Ranks.start()
        vocab = teacher.config.vocab_size
        self.sampling = Sampling(
            eos_ids=[], vocab=vocab, max_new_tokens=options.new_tokens, batch_rows=options.rollouts
        )
        self.teacher = make_decoder(teacher, scores=True)
        training = self.job.training
        self.engine = Engine(
            StudentModule(student, vocab=vocab, teacher_head=loss_head(self.teacher.head, vocab), zero_stage=0),
            learning_rate=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            grad_clip=training.grad_clip,
            dtype=training.dtype,
            resources=self.job.resources,
            ranks=self.ranks,
        )

    def decoder(self) -> Decoder:
        return make_decoder(self.student, dtype=TORCH_DTYPES[self.options.decode_dtype])

    def play_round(self, number: int, rows: list[TokenizedRow]) -> tuple[RolloutCounters, dict[str, int]]:
        """Sample and train; the work of the sampling, and the positions of both models over the whole round."""
        teacher_before = self.teacher.positions
        round_, _, _, work = collect_round(
            number,
            rows,
            self.method,
            student=self.decoder(),
            teacher=self.teacher,
            sampling=self.sampling,
            rows_per_step=self.options.rows_per_step,
            seed=0,
            ranks=self.ranks,
        )
        trained = 0
        while not round_.exhausted:
            step_rows = round_.next_rows()
            result = train_step(
                self.engine,
                step_rows,
                None,
                self.method,
                self.teacher,
                learning_rate=self.job.training.learning_rate,
                micro_batch_tokens=self.job.training.micro_batch_tokens,
                response_width=self.options.new_tokens,
                pad_id=0,
                ranks=self.ranks,
            )
            if result is None:
                raise RuntimeError("the loss is not finite")
            # The last token of a row is fed to no model.
            trained += sum(row.length - 1 for row in step_rows)
            round_.steps_done += 1
        counters = {
            "teacher_tokens": self.teacher.positions - teacher_before,
            "student_tokens": work.student_tokens + trained,
            "teacher_decode_steps": work.teacher_calls,
            "student_decode_steps": work.student_decode_steps,
        }
        return work, counters

    def sample(self, decoder: Decoder, prompts: list[list[int]], *, mixed: bool, seed: int) -> None:
        draw(
            decoder,
            self.teacher if mixed else None,
            prompts,
            list(range(len(prompts))),
            self.sampling,
            alpha=self.options.alpha if mixed else 0.0,
            temperature=1.0,
            seed=seed,
            keep_teacher_hidden=mixed,
        )


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def median(values: list[float]) -> float:
    return float(statistics.median(values))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    teacher_dir = teacher_folder(options.teacher)
    student_dir = student_folder(teacher_dir, options.layers)

    def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    texts = make_prompts(tokenizer, options.rollouts, options.prompt_tokens)
    rows = [TokenizedRow(encode_prompt(text, "chat", tokenizer), [], text, "", False) for text in texts]
    prompts = [row.prompt_ids for row in rows]
    ours = Ours(
        options, load(teacher_dir, TORCH_DTYPES[options.teacher_dtype]).requires_grad_(False), load(student_dir)
    )
    plain_teacher, plain_student = load(teacher_dir).requires_grad_(False), load(student_dir)
    optimizer = torch.optim.AdamW(plain_student.parameters(), lr=ours.job.training.learning_rate)

    def naive_sample(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        naive.sample(
            plain_student,
            plain_teacher,
            prompts,
            alpha=options.alpha,
            new_tokens=options.new_tokens,
            generator=generator,
            counts=naive.Counts(),
        )

    decoder = ours.decoder()
    ours.sample(decoder, prompts, mixed=True, seed=0)
    over_student, over_naive = [], []
    for seed in range(1, options.repeats + 1):
        # The coins change with the seed, and with them the number of the teacher's calls.
        student_s, _ = timed(functools.partial(ours.sample, decoder, prompts, mixed=False, seed=seed))
        mixed_s, _ = timed(functools.partial(ours.sample, decoder, prompts, mixed=True, seed=seed))
        naive_s, _ = timed(functools.partial(naive_sample, seed))
        say(f"sampling: student {student_s:.2f} s, mixed {mixed_s:.2f} s, naive mixed {naive_s:.2f} s")
        over_student.append(student_s / mixed_s)
        over_naive.append(naive_s / mixed_s)

    del decoder
    seconds, naive_seconds, parts = [], [], []
    counters: dict[str, int] = {}
    naive_counters = naive.Counts()
    for number in range(options.rounds):
        taken, (work, counters) = timed(lambda number=number: ours.play_round(number, rows))
        seconds.append(taken)
        parts.append({**work.seconds, "steps": taken - sum(work.seconds.values())})
        taken, naive_counters = timed(
            lambda number=number: naive.play_round(
                plain_student,
                plain_teacher,
                optimizer,
                prompts,
                alpha=options.alpha,
                new_tokens=options.new_tokens,
                rows_per_step=options.rows_per_step,
                inner_epochs=options.inner_epochs,
                cliprange=ours.job.method.resolved().cliprange,  # type: ignore[union-attr]
                seed=number,
            )
        )
        naive_seconds.append(taken)
        say(f"round {number + 1}: ours {seconds[-1]:.2f} s, naive {taken:.2f} s; {parts[-1]}")
    ours.engine.close()
    ours.ranks.close()
    tokens = sum(map(len, prompts)) + options.new_tokens * len(prompts)
    return {
        "round_s": median(seconds),
        "naive_round_s": median(naive_seconds),
        "speedup_over_naive": median([b / a for a, b in zip(seconds, naive_seconds, strict=True)]),
        "rollout_tokens": tokens,
        "counters": counters,
        "naive_counters": asdict(naive_counters),
        "teacher_token_ratio": counters["teacher_tokens"] / tokens,
        "mixed_over_student": median(over_student),
        "mixed_over_naive": median(over_naive),
        "parts": {name: median([part[name] for part in parts]) for name in parts[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rollouts and tokens, one round")
    parser.add_argument("--teacher", type=Path, help="model folder; SmolLM2-135M-Instruct when left out")
    parser.add_argument("--layers", type=int, default=10, help="layers of the student")
    parser.add_argument("--rollouts", type=int)
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--repeats", type=int, help="of the sampling alone")
    parser.add_argument("--prompt-tokens", type=int, default=95, help="mean length of the prompts")
    parser.add_argument("--rows-per-step", type=int)
    parser.add_argument("--inner-epochs", type=int, default=4)
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--teacher-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--decode-dtype", choices=["float32", "bfloat16"], help="the faster one here when left out")
    options = parser.parse_args()
    options.decode_dtype = options.decode_dtype or machine.decode_dtype()
    defaults = {"rollouts": 32, "new_tokens": 64, "rounds": 2, "repeats": 3, "rows_per_step": 8}
    if options.quick:
        defaults = {"rollouts": 8, "new_tokens": 16, "rounds": 1, "repeats": 1, "rows_per_step": 4}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    CACHE.mkdir(parents=True, exist_ok=True)
    result = measure(options)
    result |= {"quick": options.quick, "rollouts": options.rollouts, "new_tokens": options.new_tokens}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
