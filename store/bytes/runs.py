"""Every path of what runs leave: one folder a job, in it one folder an attempt (its RUN_DIR).

    <data folder>/runs/<job>/<attempt>/spec.json run.json pinned.json     what the worker writes
                                       events.jsonl checkpoints/ student/  what the trainer writes
                                       stdout.log stderr.log               what it says

What lies in a RUN_DIR is named by :mod:`minillm_core.spec.run_folder`, which the trainer shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minillm_core.spec import CHECKPOINTS_DIR, CONTEXT_FILE, EVENTS_FILE, MANIFEST_FILE, PINNED_FILE, SPEC_FILE

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, ...] = ("stdout", "stderr")

RUNS = "runs"


def relative(job_id: str, attempt: int, path: str) -> str:
    """How a row names, relative to the data folder, what lies at ``path`` in a RUN_DIR."""
    return f"{RUNS}/{job_id}/{attempt}/{path}"


@dataclass(frozen=True)
class RunFolder:
    """The RUN_DIR of one attempt. A stale attempt can only write in its own."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / SPEC_FILE

    @property
    def context(self) -> Path:
        return self.path / CONTEXT_FILE

    @property
    def events(self) -> Path:
        return self.path / EVENTS_FILE

    @property
    def pinned(self) -> Path:
        return self.path / PINNED_FILE

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS_DIR

    def log(self, stream: Stream) -> Path:
        return self.path / f"{stream}.log"

    def inside(self, path: str) -> Path:
        """What a row names relative to the RUN_DIR: a checkpoint, an artifact."""
        return self.path / path

    def manifest(self, path: str) -> Path:
        """The manifest of such a folder."""
        return self.inside(path) / MANIFEST_FILE


@dataclass(frozen=True)
class Runs:
    """The folders of all runs under one data folder."""

    data_dir: Path

    @property
    def root(self) -> Path:
        return self.data_dir / RUNS

    def job(self, job_id: str) -> Path:
        """Everything that a job leaves on disk."""
        return self.root / job_id

    def attempt(self, job_id: str, attempt: int) -> RunFolder:
        return RunFolder(self.job(job_id) / str(attempt))
