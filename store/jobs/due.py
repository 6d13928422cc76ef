"""Sweeps: what must happen to jobs although nobody asks. Idempotent, and safe when two run at once."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sqlalchemy import ColumnElement, Select, and_, delete, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from minillm_core.spec import Failure, FailureCategory, TrainerEvent
from store.db.clock import database_now
from store.db.database import DATABASE_AWAY
from store.db.tables import Attempt, Checkpoint, File, IdempotencyKey, Job
from store.files import FileRepository
from store.jobs import retention
from store.jobs.endings import RetryPolicy, cancel_finally, end_lost, fail, give_up, resume_if_wanted
from store.jobs.recording import record_events
from store.jobs.transitions import apply
from store.jobs.vocabulary import ALIVE, HELD, Cause, JobState
from store.settings import Settings
from store.workers import WorkerRepository

logger = logging.getLogger(__name__)

_BATCH = 100
_Row = TypeVar("_Row")


class RunFolders(Protocol):
    """What attempts that are lost have left in their run folders, as far as this machine has them."""

    def log_tail(self, job_id: str, attempt: int) -> bytes | None:
        """The end of the attempt's log, or None."""
        ...

    def last_events(self, job_id: str, attempt: int) -> Sequence[TrainerEvent]:
        """The newest events that its trainer wrote; more than were recorded already do no harm."""
        ...


@dataclass(frozen=True)
class DoomedCheckpoint:
    """A checkpoint whose folder shall go."""

    id: str
    job_id: str
    attempt: int
    path: str
    """Relative to the RUN_DIR of the attempt."""


@dataclass
class Sweep:
    """What a sweep did (job ids) and what is left for its caller to do."""

    requeued: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    wake: list[str] = field(default_factory=list)
    """Queued jobs to announce through the broker, as many as slots are idle; already noted as dispatched."""
    gpus: dict[str, int] = field(default_factory=dict)
    """How many accelerators each of these asks for."""
    delete_jobs: list[str] = field(default_factory=list)
    """Remove the folder ``runs/<id>``, then call ``JobRepository.purge``."""
    delete_checkpoints: list[DoomedCheckpoint] = field(default_factory=list)
    """Remove the folder, then call ``CheckpointRepository.purge``."""
    delete_files: list[str] = field(default_factory=list)
    """Remove the blob, then call ``FileRepository.purge``."""


def sweep(
    session: Session,
    *,
    policy: RetryPolicy | None = None,
    cancel_grace_seconds: float = 90.0,
    wake_seconds: float = 15.0,
    recover_leases: bool = True,
    folders: RunFolders | None = None,
) -> Sweep:
    """One pass over what is due, at most 100 rows of each kind; rows another sweep works on are skipped.

    ``recover_leases=False`` leaves expired leases alone: a sweeper that was itself cut off from the
    database passes it for one lease's time afterwards, because then holders could not renew either
    and an expired lease is no evidence of a dead one. ``folders`` gives what a lost attempt left: its log,
    stored before its job can become terminal, and the events that its worker did not live to record, so
    that the next attempt knows every checkpoint.
    """
    policy = policy or RetryPolicy()
    now = database_now(session)
    done = Sweep()
    if recover_leases:
        for job_id in _due(session, and_(Job.state.in_(HELD), Job.lease_expires_at <= now)):
            _handle(session, job_id, done, lambda job: _lease_expired(session, job, policy, folders))
    grace = dt.timedelta(seconds=cancel_grace_seconds)
    for job_id in _due(session, and_(Job.state == JobState.CANCELLING, Job.desired_at <= now - grace)):
        _handle(session, job_id, done, lambda job: _cancel_overdue(session, job, folders))
    # A holder watches the deadline itself and writes a last checkpoint: it has the same grace for that.
    overdue = and_(Job.deadline_at <= now, or_(Job.state.not_in(HELD), Job.deadline_at <= now - grace))
    for job_id in _due(session, and_(Job.state.in_(ALIVE), overdue)):
        _handle(session, job_id, done, lambda job: _expire(session, job, folders))
    done.wake = _to_wake(session, now, wake_seconds)
    done.gpus = {row.id: row.gpus for row in session.execute(select(Job.id, Job.gpus).where(Job.id.in_(done.wake)))}
    _collect_deletions(session, now, done)
    return done


def sweep_with(
    session: Session, settings: Settings, *, recover_leases: bool = True, folders: RunFolders | None = None
) -> Sweep:
    """:func:`sweep` with the times that the settings give."""
    return sweep(
        session,
        policy=RetryPolicy.of(settings),
        cancel_grace_seconds=settings.cancel_grace_seconds,
        wake_seconds=settings.wake_seconds,
        recover_leases=recover_leases,
        folders=folders,
    )


def _due(
    session: Session, condition: ColumnElement[bool], first: Sequence[Any] = (Job.id,), limit: int = _BATCH
) -> list[str]:
    statement = select(Job.id).where(condition).order_by(*first).limit(limit).with_for_update(skip_locked=True)
    return list(session.scalars(statement))


def _handle(session: Session, job_id: str, done: Sweep, change: Callable[[Job], None]) -> None:
    """Change one job in a savepoint: what goes wrong with it must not keep a sweep from the others."""
    try:
        with session.begin_nested():
            job = session.get_one(Job, job_id, populate_existing=True)
            change(job)
    except (*DATABASE_AWAY, StaleDataError):
        raise  # it is not the job's fault
    except Exception as error:
        logger.exception("%s: the sweep cannot deal with it", job_id)
        give_up(session, job_id, error)
    else:
        _note(done, job)


def _lease_expired(session: Session, job: Job, policy: RetryPolicy, folders: RunFolders | None) -> None:
    message = f"The worker {job.lease_owner} stopped renewing its lease"
    failure = Failure(code="worker_lost", category=FailureCategory.INFRASTRUCTURE, message=message, retryable=True)
    attempt = _take_away(session, job, folders, failure.code, message)
    fail(session, job, attempt, failure, policy, Cause.LEASE_EXPIRED)
    resume_if_wanted(session, job)


def _cancel_overdue(session: Session, job: Job, folders: RunFolders | None) -> None:
    _take_away(session, job, folders, "cancel_grace_elapsed", "The worker did not stop the attempt in time")
    cancel_finally(session, job, Cause.CANCEL_GRACE_ELAPSED)


def _expire(session: Session, job: Job, folders: RunFolders | None) -> None:
    message = f"The job's {job.max_runtime_seconds} s have passed"
    leased_until = job.lease_expires_at
    if job.state in HELD:
        _take_away(session, job, folders, "time_limit", message)
    failure = Failure(code="time_limit", category=FailureCategory.USER, message=message, retryable=True)
    job.failure = failure.model_copy(update={"attempt": job.attempt or None}).model_dump(mode="json")
    apply(session, job, Cause.DEADLINE, message=message)
    # Its trainer may live to the end of the lease, where the worker does not hear that it was taken: until then
    # nobody may claim the job, though its owner retries it at once.
    job.not_before = leased_until


def _take_away(session: Session, job: Job, folders: RunFolders | None, code: str, message: str) -> Attempt:
    """Raise the fence of a held job, so that its holder is refused from now on, and end its attempt."""
    attempt = session.scalar(select(Attempt).where(Attempt.job_id == job.id, Attempt.number == job.attempt))
    assert attempt is not None, f"{job.id} is held without an attempt"
    log = None
    if folders is not None:
        # In a savepoint: whatever a trainer wrote, or a disk does not give, it must not keep the sweep from its work.
        try:
            with session.begin_nested():
                record_events(session, job, attempt, folders.last_events(job.id, attempt.number))
        except Exception as error:
            logger.warning("%s: events of attempt %d are left out: %s", job.id, attempt.number, error)
        try:
            log = folders.log_tail(job.id, attempt.number)
        except OSError as error:
            logger.warning("%s: the log of attempt %d cannot be read: %s", job.id, attempt.number, error)
    job.fence += 1
    category = FailureCategory.USER if code == "time_limit" else FailureCategory.INFRASTRUCTURE
    end_lost(session, attempt, Failure(code=code, category=category, message=message), log)
    return attempt


def _note(done: Sweep, job: Job) -> None:
    lists = {
        JobState.QUEUED: done.requeued,
        JobState.FAILED: done.failed,
        JobState.PAUSED: done.paused,
        JobState.CANCELLED: done.cancelled,
        JobState.EXPIRED: done.expired,
    }
    lists[job.state].append(job.id)


def _to_wake(session: Session, now: dt.datetime, wake_seconds: float) -> list[str]:
    silent = now - dt.timedelta(seconds=wake_seconds)
    due = and_(
        Job.state == JobState.QUEUED,
        or_(Job.not_before.is_(None), Job.not_before <= now),
        or_(Job.dispatched_at.is_(None), Job.dispatched_at <= silent),
    )
    idle = WorkerRepository(session).idle()
    if not idle:
        # Nobody would take a message: the busy look for work when they are done, and the new when they begin. Sent
        # all the same, week after week, they would fill the broker's memory.
        return []
    first = (Job.priority.desc(), Job.created_at, Job.id)
    jobs = _due(session, due, first, min(idle, _BATCH))
    # Not through the ORM: nothing that a client sees changes, so the versions stay.
    session.execute(
        update(Job).where(Job.id.in_(jobs)).values(dispatched_at=now).execution_options(synchronize_session=False)
    )
    return jobs


def _collect_deletions(session: Session, now: dt.datetime, done: Sweep) -> None:
    retention.expire(session, now)
    FileRepository(session).expire(now)
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.expires_at <= now))
    session.flush()
    done.delete_jobs = _limited(session, select(Job.id).where(Job.deleting.is_(True)))
    doomed = (
        select(Checkpoint)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.deleting.is_(True), Job.deleting.is_(False))
    )
    done.delete_checkpoints = [
        DoomedCheckpoint(row.id, row.job_id, row.attempt, row.path) for row in _limited(session, doomed)
    ]
    done.delete_files = _limited(session, select(File.id).where(File.deleting.is_(True)))


def _limited(session: Session, statement: Select[_Row]) -> list[_Row]:
    return list(session.scalars(statement.limit(_BATCH)))
