"""Plays the worker: claims a job, records what a trainer says, leaves its files, ends the attempt."""

from __future__ import annotations

import hashlib
from typing import Any

from api.services import Services
from minillm_core.spec import (
    CheckpointEvent,
    Failure,
    FailureCategory,
    Manifest,
    ManifestFile,
    MetricsEvent,
    Phase,
    PhaseEvent,
    ProgressEvent,
    StudentEvent,
    TrainerEvent,
)
from minillm_core.spec.model_folder import ModelDescription
from store.jobs.endings import Outcome, RetryPolicy, Student
from store.jobs.leases import Claim, claim, finish, record

TIME = "2026-01-01T00:00:00Z"
WEIGHTS = bytes(range(256)) * 40
STUDENT_FILES = {"config.json": b'{"a": 1}\n', "model.safetensors": WEIGHTS, "assets/vocab.txt": b"the\ncat\n"}


class Run:
    def __init__(self, services: Services, job_id: str) -> None:
        self.services = services
        with services.database.write() as session:
            taken = claim(session, "wrk_test", "host", 1, 30.0, job_id)
        assert taken is not None
        self.claim: Claim = taken
        self.folder = services.settings.runs.attempt(job_id, taken.attempt).path
        self.folder.mkdir(parents=True)
        self._seq = 0

    def _next(self) -> dict[str, Any]:
        self._seq += 1
        return {"seq": self._seq, "time": TIME}

    def say(self, *events: TrainerEvent) -> None:
        with self.services.database.write() as session:
            record(session, self.claim, events)

    def train(self, steps: int) -> None:
        """Progress, metrics, and a checkpoint at each step."""
        self.say(PhaseEvent(phase=Phase.TRAINING, **self._next()))
        for step in range(1, steps + 1):
            self.say(
                ProgressEvent(
                    phase=Phase.TRAINING, step=step, total_steps=steps, fraction=step / (steps + 1),
                    tokens_per_second=100.0, seconds_left=10.0, **self._next(),
                ),
                MetricsEvent(
                    phase=Phase.TRAINING, step=step, values={"loss": 1 / step, "=reverse_kl": 2.0}, **self._next()
                ),
                CheckpointEvent(
                    phase=Phase.TRAINING, step=step, path=f"checkpoints/training-{step}", bytes=10,
                    manifest_sha256="0" * 64, best=step == 1, **self._next(),
                ),
            )  # fmt: skip

    def succeed(self, files: dict[str, bytes] | None = None) -> None:
        """Commits a student whose manifest is true of its files."""
        folder = self.folder / "student"
        entries = []
        for name, content in (files or STUDENT_FILES).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            entries.append(ManifestFile(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))
        manifest = Manifest(kind="student", created_at=TIME, files=entries).dumps()
        (folder / "manifest.json").write_bytes(manifest)
        self.say(
            StudentEvent(
                path="student", manifest_sha256=hashlib.sha256(manifest).hexdigest(), bytes=len(WEIGHTS),
                parameters=10, teacher_parameters=20, report={"after": {"rouge_l": 0.5}}, **self._next(),
            )
        )  # fmt: skip
        description = ModelDescription("LlamaForCausalLM", True, 10, 2, 10, 512, None, "float32", len(WEIGHTS))
        self._finish(Outcome.succeeded(Student(manifest, description)))

    def fail(self, log: bytes | None = None) -> None:
        failure = Failure(code="dataset_invalid", category=FailureCategory.USER, message="every prompt is too long")
        self._finish(Outcome.failed(failure, exit_code=64, log=log))

    def stop(self) -> None:
        """As asked: by a pause or a cancel."""
        self._finish(Outcome.stopped(exit_code=75))

    def _finish(self, outcome: Outcome) -> None:
        with self.services.database.write() as session:
            finish(session, self.claim, outcome, RetryPolicy())
