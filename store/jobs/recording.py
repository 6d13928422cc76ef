"""Trainer events become rows: the part of the store that understands ``events.jsonl``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import PurePosixPath

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from minillm_core.spec import (
    CheckpointEvent,
    CheckpointRemovedEvent,
    FailureEvent,
    MessageEvent,
    MetricsEvent,
    PhaseEvent,
    ProgressEvent,
    StudentEvent,
    TrainerEvent,
)
from store.db.clock import database_now
from store.db.ids import new_id
from store.db.printable import printable, printable_data
from store.db.tables import Attempt, Checkpoint, Job, MetricPoint
from store.jobs import retention
from store.jobs.artifacts import ArtifactRepository
from store.jobs.metrics import names_key
from store.jobs.transitions import add_event, apply
from store.jobs.vocabulary import ArtifactKind, Cause, JobState


def record_events(session: Session, job: Job, attempt: Attempt, events: Sequence[TrainerEvent]) -> None:
    """Write the events that the attempt has not recorded yet. Both rows are locked by the caller."""
    now = database_now(session)
    for event in events:
        if event.seq <= attempt.recorded_seq:
            continue
        if job.state is JobState.STARTING and isinstance(event, PhaseEvent | ProgressEvent | MetricsEvent):
            apply(session, job, Cause.FIRST_PROGRESS)
        _record_one(session, job, attempt, event, now)
        attempt.recorded_seq = event.seq
    session.flush()


def _record_one(session: Session, job: Job, attempt: Attempt, event: TrainerEvent, now: dt.datetime) -> None:
    if isinstance(event, CheckpointEvent | StudentEvent) and not _inside(event.path):
        # The sweeper deletes such folders and the API serves them: none outside is ever recorded.
        message = "The trainer named a folder outside its run folder; it was left out"
        add_event(session, job, "message", code="path_refused", message=message, level="error", now=now)
        return
    if isinstance(event, PhaseEvent):
        _moved(job, attempt, event.phase, now)
        add_event(session, job, "phase", code=event.phase, message=event.message, now=now)
    elif isinstance(event, ProgressEvent):
        _progress(job, attempt, event, now)
    elif isinstance(event, MetricsEvent):
        _moved(job, attempt, event.phase, now)
        attempt.step = event.step
        values = {printable(name): value for name, value in event.values.items()}
        job.metrics = {**job.metrics, **values}
        session.add(
            MetricPoint(
                job_id=job.id,
                attempt=attempt.number,
                seq=event.seq,
                phase=event.phase,
                step=event.step,
                values=values,
                names_key=names_key(values),
                created_at=now,
            )
        )
    elif isinstance(event, CheckpointEvent):
        _checkpoint(session, job, attempt, event, now)
    elif isinstance(event, CheckpointRemovedEvent):
        row = session.scalar(_checkpoint_at(job, attempt, event.path))
        if row is not None:
            session.delete(row)
            add_event(session, job, "checkpoint_removed", code="checkpoint_removed", data={"path": event.path}, now=now)
    elif isinstance(event, MessageEvent):
        add_event(
            session, job, "message", code=event.code, message=event.message, level=event.level, data=event.data, now=now
        )
        if event.code == "resuming" and isinstance(event.data.get("path"), str):
            attempt.resumed_from = printable(event.data["path"])
    elif isinstance(event, StudentEvent):
        _student(session, job, attempt, event, now)
    elif isinstance(event, FailureEvent):
        attempt.failure = printable_data({**event.failure.model_dump(mode="json"), "attempt": attempt.number})
        add_event(
            session,
            job,
            "failure",
            code=event.failure.code,
            message=event.failure.message,
            level="error",
            data=attempt.failure,
            now=now,
        )


def _inside(path: str) -> bool:
    """Whether a folder that the trainer names lies under its run folder."""
    parts = PurePosixPath(path)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts and "\x00" not in path


def _moved(job: Job, attempt: Attempt, phase: str, now: dt.datetime) -> None:
    attempt.progress_at = now
    attempt.phase = phase
    job.phase = phase
    job.updated_at = now


def _progress(job: Job, attempt: Attempt, event: ProgressEvent, now: dt.datetime) -> None:
    _moved(job, attempt, event.phase, now)
    attempt.step = event.step
    job.step = event.step
    job.total_steps = event.total_steps
    job.fraction = min(1.0, max(0.0, event.fraction))
    if job.fraction > job.furthest_fraction:
        job.furthest_fraction = job.fraction
        attempt.advanced = True
    job.tokens_per_second = event.tokens_per_second
    job.seconds_left = event.seconds_left
    job.progress_at = now


def _checkpoint(session: Session, job: Job, attempt: Attempt, event: CheckpointEvent, now: dt.datetime) -> None:
    _moved(job, attempt, event.phase, now)
    if event.best:
        session.execute(
            update(Checkpoint)
            .where(Checkpoint.job_id == job.id, Checkpoint.phase == event.phase, Checkpoint.best.is_(True))
            .values(best=False)
        )
    if event.resumable and _further(session, job, attempt, event):
        attempt.advanced = True
    row = session.scalar(_checkpoint_at(job, attempt, event.path))
    if row is None:  # a folder written again (same phase, same step) keeps its id
        row = Checkpoint(
            id=new_id("ckpt"), job_id=job.id, attempt=attempt.number, path=event.path, pinned=False, deleting=False
        )
        session.add(row)
    row.phase = event.phase
    row.step = event.step
    row.bytes = event.bytes
    row.manifest_sha256 = event.manifest_sha256
    row.best = event.best
    row.resumable = event.resumable
    row.metrics = event.metrics
    row.created_at = now
    data = {"checkpoint": row.id, "phase": event.phase, "step": event.step, "bytes": event.bytes, "best": event.best}
    add_event(session, job, "checkpoint", code="checkpoint", message=f"Checkpoint at step {event.step}", data=data)
    retention.retain(session, job)


def _further(session: Session, job: Job, attempt: Attempt, event: CheckpointEvent) -> bool:
    """Whether a checkpoint lies beyond those of earlier attempts: what it has will not be done again."""
    earlier = (
        select(Checkpoint)
        .where(Checkpoint.job_id == job.id, Checkpoint.attempt < attempt.number, Checkpoint.resumable.is_(True))
        .where(Checkpoint.attempt > job.resume_after_attempt)
        .order_by(*retention.NEWEST_FIRST)
        .limit(1)
    )
    newest = session.scalar(earlier)
    return newest is None or newest.phase != event.phase or event.step > newest.step


def _student(session: Session, job: Job, attempt: Attempt, event: StudentEvent, now: dt.datetime) -> None:
    attempt.progress_at = now
    ArtifactRepository(session).announce(
        attempt,
        ArtifactKind.STUDENT,
        path=event.path,
        manifest_sha256=event.manifest_sha256,
        bytes=event.bytes,
        parameters=event.parameters,
        now=now,
    )
    job.teacher_parameters = event.teacher_parameters
    job.report = printable_data(event.report)
    data = {"parameters": event.parameters, "teacher_parameters": event.teacher_parameters, "bytes": event.bytes}
    add_event(session, job, "student", code="student_exported", message="The student is exported", data=data, now=now)


def _checkpoint_at(job: Job, attempt: Attempt, path: str) -> Select[Checkpoint]:
    return select(Checkpoint).where(
        Checkpoint.job_id == job.id, Checkpoint.attempt == attempt.number, Checkpoint.path == path
    )
