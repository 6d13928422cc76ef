"""The jobs that are trained: a few kinds of seconds each, and what each gives when nothing disturbs it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.chaos.stack import ROOT, trainer_environment
from minillm_core.spec import RunContext
from tests.tiny_models import write_tiny_dataset, write_tiny_model

TEACHER = "teacher"
WEIGHTS = "model.safetensors"

_BASE: dict[str, Any] = {
    "teacher": {"model": f"path:{TEACHER}"},
    "student": {"prune_teacher": {"layers": 2}},
    "training": {
        "rows_per_step": 8,
        "learning_rate": 1e-3,
        "max_prompt_tokens": 96,
        "max_new_tokens": 16,
        "dtype": "float32",
        "keep_checkpoints": 3,
        "student_sft": None,
    },
    "evaluation": {"metrics": ["rouge_l"], "max_rows": 4, "samples": 1},
    "guards": {"enabled": False},
    "scheduling": {"max_attempts": 100},
}
_KINDS: dict[str, dict[str, Any]] = {
    "minillm": {
        "method": {"type": "minillm", "rollouts_per_round": 16, "inner_epochs": 2},
        "training": {"max_steps": 60, "save_every": 3, "eval_every": 20},
    },
    "phases": {
        "method": {"type": "minillm", "rollouts_per_round": 32, "inner_epochs": 1},
        "training": {"max_steps": 32, "save_every": 2, "eval_every": 16, "student_sft": {"max_steps": 30}},
    },
    "sft": {"method": {"type": "sft"}, "training": {"max_steps": 150, "save_every": 10, "eval_every": 50}},
    "gkd": {
        "method": {"type": "gkd", "rollouts_per_round": 16},
        "training": {"max_steps": 50, "save_every": 5, "eval_every": 25},
    },
}
KINDS = tuple(_KINDS)
ENDLESS_STEPS = 100_000


def write_inputs(data_dir: Path) -> None:
    """The teacher under ``models/`` and the dataset beside it."""
    write_tiny_model(data_dir / "models" / TEACHER, layers=4, hidden=64, scale=4.0)
    write_tiny_dataset(data_dir / "data.jsonl", rows=48)


def make_spec(kind: str, file_id: str, **scheduling: Any) -> dict[str, Any]:
    """The body of ``POST /v1/jobs``; one seed for each kind, so that each kind has one right student."""
    spec = copy.deepcopy(_BASE)
    for section, values in _KINDS[kind].items():
        spec[section] = {**spec.get(section, {}), **values}
    spec["dataset"] = {"file": file_id, "dev_fraction": 0.2}
    spec["seed"] = KINDS.index(kind) + 1
    spec["metadata"] = {"kind": kind}
    spec["scheduling"] = {**spec["scheduling"], **scheduling}
    return spec


def references(folder: Path, data_dir: Path, kinds: tuple[str, ...] = KINDS) -> dict[str, str]:
    """sha256 of the weights of each kind's student, trained by hand, twice at a time. Raises CalledProcessError."""
    waiting: list[tuple[str, Path, subprocess.Popen[bytes]]] = []
    digests: dict[str, str] = {}

    def collect() -> None:
        kind, run_dir, process = waiting.pop(0)
        code = process.wait(600)
        if code:
            print((run_dir / "output.log").read_text()[-3000:], file=sys.stderr)
            raise subprocess.CalledProcessError(code, kind)
        digests[kind] = weights_sha256(run_dir / "student")

    for kind in kinds:
        run_dir = folder / kind
        run_dir.mkdir(parents=True)
        (run_dir / "spec.json").write_text(json.dumps(make_spec(kind, "file_reference")))
        context = RunContext(
            job_id=f"job_{kind}",
            attempt=1,
            models={f"path:{TEACHER}": str(data_dir / "models" / TEACHER)},
            files={"file_reference": str(data_dir / "data.jsonl")},
        )
        (run_dir / "run.json").write_text(context.model_dump_json())
        with (run_dir / "output.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "minillm_core", str(run_dir)],
                cwd=ROOT,
                env={**os.environ, **trainer_environment(folder.parent)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        waiting.append((kind, run_dir, process))
        if len(waiting) == 2:
            collect()
    while waiting:
        collect()
    return digests


def weights_sha256(student: Path) -> str:
    return hashlib.sha256((student / WEIGHTS).read_bytes()).hexdigest()
