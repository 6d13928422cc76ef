"""What the store's tests build with: specs, trainer events, students, and time that has passed."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from minillm_core.spec import (
    CheckpointEvent,
    Failure,
    FailureCategory,
    JobSpec,
    Manifest,
    ManifestFile,
    MetricsEvent,
    Phase,
    PhaseEvent,
    ProgressEvent,
    StudentEvent,
)
from minillm_core.spec.model_folder import ModelDescription
from store.db.database import Database
from store.db.tables import Artifact, Attempt, Job
from store.jobs.artifacts import ArtifactRepository
from store.jobs.leases import Claim, Outcome, Student, claim
from store.jobs.repository import JobRepository
from store.jobs.vocabulary import ArtifactKind

OWNER = "owner-1"
TIME = "2026-01-01T00:00:00Z"
DESCRIPTION = ModelDescription("LlamaForCausalLM", True, 10, 2, 32, 64, "f" * 64, "float32", 100)
MANIFEST = Manifest(
    kind="student", created_at=TIME, files=[ManifestFile(name="model.safetensors", bytes=100, sha256="0" * 64)]
).dumps()


def make_spec(**changes: Any) -> JobSpec:
    spec: dict[str, Any] = {
        "teacher": {"model": "path:teacher"},
        "student": {"model": "path:student"},
        "dataset": {"file": "file_abc"},
        "method": {"type": "kd"},
    }
    return JobSpec.model_validate({**spec, **changes})


def make_job(database: Database, owner: str = OWNER, **changes: Any) -> str:
    with database.write() as session:
        return JobRepository(session).create(owner_id=owner, spec=make_spec(**changes)).id


def take(database: Database, job_id: str | None = None, worker: str = "wrk_a") -> Claim:
    with database.write() as session:
        taken = claim(session, worker, "host", 1, 30.0, job_id)
    assert taken is not None
    return taken


def row(database: Database, job_id: str) -> Job:
    with database.read() as session:
        found = session.get(Job, job_id)
    assert found is not None
    return found


def artifact(database: Database, job_id: str) -> Artifact | None:
    """The job's student, once it is verified."""
    with database.read() as session:
        return ArtifactRepository(session).verified(row(database, job_id), ArtifactKind.STUDENT)


def student_model(database: Database, job_id: str) -> str:
    found = artifact(database, job_id)
    assert found is not None and found.model_id is not None
    return found.model_id


def attempts(database: Database, job_id: str) -> list[Attempt]:
    with database.read() as session:
        return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)))


def pass_time(session: Session, job_id: str, seconds: float) -> None:
    """Make every time of a job lie ``seconds`` further in the past: what waiting would do."""
    job = session.get(Job, job_id, populate_existing=True)
    assert job is not None
    names = ("lease_expires_at", "not_before", "deadline_at", "desired_at", "dispatched_at", "progress_at")
    shifted = {
        name: getattr(job, name) - dt.timedelta(seconds=seconds) for name in names if getattr(job, name) is not None
    }
    if shifted:
        statement = update(Job).where(Job.id == job_id).values(**shifted)
        session.execute(statement.execution_options(synchronize_session=False))
    session.expire_all()


@dataclass
class LostRun:
    """What a lost attempt left in its run folder (store.jobs.due.RunFolders)."""

    log: bytes | None = None
    events: Sequence[Any] = ()

    def log_tail(self, job_id: str, attempt: int) -> bytes | None:
        return self.log

    def last_events(self, job_id: str, attempt: int) -> Sequence[Any]:
        return self.events


def phase(seq: int, phase: Phase = Phase.TRAINING) -> PhaseEvent:
    return PhaseEvent(seq=seq, time=TIME, phase=phase)


def progress(seq: int, step: int, total: int = 10, **changes: Any) -> ProgressEvent:
    return ProgressEvent(
        seq=seq, time=TIME, phase=Phase.TRAINING, step=step, total_steps=total, fraction=step / total, **changes
    )


def metrics(seq: int, step: int, phase: Phase = Phase.TRAINING, **values: float) -> MetricsEvent:
    return MetricsEvent(seq=seq, time=TIME, phase=phase, step=step, values=values)


def checkpoint(seq: int, step: int, **changes: Any) -> CheckpointEvent:
    fields: dict[str, Any] = {"path": f"checkpoints/training-{step}", "bytes": 10, "manifest_sha256": "a" * 64}
    return CheckpointEvent(seq=seq, time=TIME, phase=Phase.TRAINING, step=step, **{**fields, **changes})


def student(seq: int, manifest: bytes = MANIFEST) -> StudentEvent:
    return StudentEvent(
        seq=seq,
        time=TIME,
        path="student",
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        bytes=100,
        parameters=10,
        teacher_parameters=20,
        report={"rouge_l": {"before": 1.0, "after": 2.0}},
    )


def success(manifest: bytes = MANIFEST) -> Outcome:
    return Outcome.succeeded(Student(manifest, DESCRIPTION))


def failure(category: str = "infrastructure", code: str = "internal_error", **more: Any) -> Outcome:
    return Outcome.failed(
        Failure(code=code, category=FailureCategory(category), message=f"{code} happened"), exit_code=70, **more
    )
