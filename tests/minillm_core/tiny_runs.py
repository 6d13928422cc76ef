"""Run folders with tiny models, and the trainer run on them in this process or as its own program."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from minillm_core.run import run_job
from minillm_core.spec import EVENTS_FILE, SPEC_FILE, JobSpec, RunContext
from minillm_core.train.distributed import Ranks
from minillm_core.train.engine import Engine
from minillm_core.train.events import EventLog
from minillm_core.train.stop import StopFlag
from tests.tiny_models import write_tiny_dataset, write_tiny_model

ROOT = Path(__file__).parents[2]
LAST_WEIGHTS = "last_weights.pt"


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, section by section; a ``method`` replaces the whole section."""
    merged = dict(base)
    for name, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict) and name != "method"
        merged[name] = merge(merged[name], value) if nested else value
    return merged


def tiny_spec(**changes: Any) -> dict[str, Any]:
    """A job of seconds: four-layer teacher, its two-layer pruning, six steps of eight rows."""
    base: dict[str, Any] = {
        "seed": 3,
        "teacher": {"model": "path:teacher"},
        "student": {"prune_teacher": {"layers": 2}},
        "dataset": {"file": "path:data.jsonl", "dev_fraction": 0.2},
        "method": {"type": "minillm", "rollouts_per_round": 16, "inner_epochs": 2},
        "training": {
            "max_steps": 6,
            "rows_per_step": 8,
            "learning_rate": 1e-3,
            "max_prompt_tokens": 96,
            "max_new_tokens": 12,
            "dtype": "float32",
            "eval_every": 6,
            "save_every": 100,
            "student_sft": None,
        },
        "evaluation": {"metrics": ["rouge_l"], "max_rows": 4, "samples": 1},
    }
    return merge(base, changes)


def write_run(folder: Path, *, family: str = "llama", rows: int = 40, **changes: Any) -> Path:
    """A run folder with a tiny teacher, a dataset and the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_model(folder / "teacher", family, layers=4, scale=4.0)
    write_tiny_dataset(folder / "data.jsonl", rows=rows)
    (folder / SPEC_FILE).write_text(json.dumps(tiny_spec(**changes)))
    return folder


class StopAfter(StopFlag):
    """Asks to stop at the n-th time the loop looks."""

    def __init__(self, looks: int | None) -> None:
        super().__init__()
        self._looks = looks

    def agreed(self, ranks: Ranks) -> bool:
        if self._looks is not None:
            self._looks -= 1
            self._asked = self._asked or self._looks <= 0
        return super().agreed(ranks)


def run_here(folder: Path, *, stop_after: int | None = None, context: RunContext | None = None) -> list[dict[str, Any]]:
    """Run the job in this process, as one rank; returns the folder's events. Raises what the run raises."""
    job = JobSpec.model_validate_json((folder / SPEC_FILE).read_text())
    ranks = Ranks.start()
    log = EventLog(folder, enabled=ranks.main)
    finished = Engine.finished_model

    def kept(engine: Engine) -> nn.Module:
        model = finished(engine)
        if ranks.main:
            torch.save(model.state_dict(), folder / LAST_WEIGHTS)
        return model

    try:
        with mock.patch.object(Engine, "finished_model", kept):
            run_job(job, context or RunContext(), folder, ranks, log, StopAfter(stop_after))
    finally:
        log.close()
    return events(folder)


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What the last step of a run by :func:`run_here` left. The student has those of the best evaluation."""
    weights: dict[str, torch.Tensor] = torch.load(folder / LAST_WEIGHTS, weights_only=True)
    return weights


def environment() -> dict[str, str]:
    """Of a trainer that a test starts: one thread a rank."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run_program(
    folder: Path, *, launcher: tuple[str, ...] = (), timeout: float = 280
) -> tuple[int, list[dict[str, Any]]]:
    """``python [-m launcher ...] -m minillm_core FOLDER`` in a process of its own: exit code and events."""
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "minillm_core", str(folder)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode not in (0, 64, 75):
        print(done.stdout[-2000:], done.stderr[-4000:])
    return done.returncode, events(folder)


def run_ranks(program: str, folder: Path, *, ranks: int = 2, timeout: float = 280) -> int:
    """Run the Python text ``program`` on ``folder`` in ranks of the trainer's launcher: its exit code."""
    path = folder / "program.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{program}")
    launcher = (
        "import sys; from pathlib import Path; from minillm_core.launch import launch_ranks; "
        f"sys.exit(launch_ranks(Path({str(folder)!r}), {ranks}, ({str(path)!r},)))"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher], cwd=ROOT, env=environment(), start_new_session=True)
    try:
        return process.wait(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / EVENTS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(found: list[dict[str, Any]], name: str = "loss", phase: str = "training") -> list[float]:
    """The values of a metric of ``phase``, by step."""
    rows = [event for event in found if event["type"] == "metrics" and event["phase"] == phase]
    return [event["values"][name] for event in rows if name in event["values"]]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in found if event["type"] == kind]
