"""What must happen to jobs although nobody asks. Idempotent, and safe when two programs do it at once."""

from __future__ import annotations

import datetime as dt
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from sqlalchemy import ColumnElement, Select, and_, delete, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from minillm_core.spec import Failure, FailureCategory, TrainerEvent
from store.db.clock import database_now
from store.db.database import DATABASE_AWAY, Database
from store.db.tables import Attempt, Checkpoint, File, IdempotencyKey, Job
from store.files import FileRepository
from store.jobs import retention
from store.jobs.endings import RetryPolicy, cancel_finally, end_lost, fail, give_up, resume_if_wanted
from store.jobs.recording import record_events
from store.jobs.transitions import apply
from store.jobs.vocabulary import ALIVE, HELD, Cause, JobState
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


@dataclass(frozen=True)
class Doomed:
    """What shall be removed: first its bytes, then its row. What is cut short in between is found again."""

    jobs: list[str]
    """Remove the folder ``runs/<id>``, then call ``JobRepository.purge``."""
    checkpoints: list[DoomedCheckpoint]
    """Remove the folder, then call ``CheckpointRepository.purge``."""
    files: list[str]
    """Remove the blob, then call ``FileRepository.purge``."""


@dataclass
class Recovered:
    """What a pass over the jobs did: their ids by what became of them."""

    requeued: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)


def recover(
    database: Database,
    *,
    policy: RetryPolicy | None = None,
    cancel_grace_seconds: float = 90.0,
    recover_leases: bool = True,
    folders: RunFolders | None = None,
) -> Recovered:
    """One pass over the jobs of which something is due, at most 100 of each kind; those another works on are skipped.

    ``recover_leases=False`` leaves expired leases alone: a program that was itself cut off from the
    database passes it for one lease's time afterwards, because then holders could not renew either
    and an expired lease is no evidence of a dead one. ``folders`` gives what a lost attempt left: its log,
    stored before its job can become terminal, and the events that its worker did not live to record, so
    that the next attempt knows every checkpoint.

    Each job has a transaction of its own, before which its folder is read: nobody's lease waits for a disk.
    """
    policy = policy or RetryPolicy()
    grace = dt.timedelta(seconds=cancel_grace_seconds)
    done = Recovered()
    rules = [
        _Rule(
            lambda now: and_(Job.state == JobState.CANCELLING, Job.desired_at <= now - grace),
            _cancel_overdue,
        ),
        # A holder watches the deadline itself and writes a last checkpoint: it has the same grace for that.
        _Rule(
            lambda now: and_(
                Job.state.in_(ALIVE),
                Job.deadline_at <= now,
                or_(Job.state.not_in(HELD), Job.deadline_at <= now - grace),
            ),
            _expire,
        ),
    ]
    if recover_leases:
        lost = functools.partial(_lease_expired, policy)
        rules.insert(0, _Rule(lambda now: and_(Job.state.in_(HELD), Job.lease_expires_at <= now), lost))
    for rule in rules:
        for due in _due_by(database, rule):
            _handle(database, rule, due, _left_of(due, folders), done)
    return done


@dataclass(frozen=True)
class _Left:
    """What an attempt left on the disk."""

    events: Sequence[TrainerEvent] = ()
    log: bytes | None = None


@dataclass(frozen=True)
class _Rule:
    """What is due, and what becomes of it."""

    condition: Callable[[dt.datetime], ColumnElement[bool]]
    change: Callable[[Session, Job, _Left], None]


@dataclass(frozen=True)
class _Due:
    """A job as it was when it was found due."""

    job_id: str
    attempt: int
    fence: int
    held: bool

    def still(self, session: Session, rule: _Rule) -> bool:
        """Lock the job if it is as it was found and due; False where another has it or has been here."""
        same = and_(Job.id == self.job_id, Job.fence == self.fence, rule.condition(database_now(session)))
        return session.scalar(select(Job.id).where(same).with_for_update(skip_locked=True)) is not None


def _due_by(database: Database, rule: _Rule) -> list[_Due]:
    with database.read() as session:
        found = (
            select(Job.id, Job.attempt, Job.fence, Job.state.in_(HELD))
            .where(rule.condition(database_now(session)))
            .order_by(Job.id)
            .limit(_BATCH)
        )
        return [_Due(*row) for row in session.execute(found)]


def _left_of(due: _Due, folders: RunFolders | None) -> _Left:
    """Whatever a trainer wrote, or a disk does not give, it must not keep the sweep from its work."""
    if folders is None or not due.held:
        return _Left()
    events: Sequence[TrainerEvent] = ()
    log = None
    try:
        events = folders.last_events(due.job_id, due.attempt)
    except Exception as error:
        logger.warning("%s: events of attempt %d are left out: %s", due.job_id, due.attempt, error)
    try:
        log = folders.log_tail(due.job_id, due.attempt)
    except OSError as error:
        logger.warning("%s: the log of attempt %d cannot be read: %s", due.job_id, due.attempt, error)
    return _Left(events, log)


def _handle(database: Database, rule: _Rule, due: _Due, left: _Left, done: Recovered) -> None:
    """Change one job: what goes wrong with it must not keep a sweep from the others."""
    try:
        with database.write() as session:
            if not due.still(session, rule):
                return
            job = session.get_one(Job, due.job_id, populate_existing=True)
            rule.change(session, job, left)
    except (*DATABASE_AWAY, StaleDataError):
        raise  # it is not the job's fault
    except Exception as error:
        logger.exception("%s: the sweep cannot deal with it", due.job_id)
        with database.write() as session:
            if due.still(session, rule):
                give_up(session, due.job_id, error)
    else:
        _note(done, job)


def _lease_expired(policy: RetryPolicy, session: Session, job: Job, left: _Left) -> None:
    message = f"The worker {job.lease_owner} stopped renewing its lease"
    failure = Failure(code="worker_lost", category=FailureCategory.INFRASTRUCTURE, message=message, retryable=True)
    attempt = _take_away(session, job, left, failure.code, message)
    fail(session, job, attempt, failure, policy, Cause.LEASE_EXPIRED)
    resume_if_wanted(session, job)


def _cancel_overdue(session: Session, job: Job, left: _Left) -> None:
    _take_away(session, job, left, "cancel_grace_elapsed", "The worker did not stop the attempt in time")
    cancel_finally(session, job, Cause.CANCEL_GRACE_ELAPSED)


def _expire(session: Session, job: Job, left: _Left) -> None:
    message = f"The job's {job.max_runtime_seconds} s have passed"
    leased_until = job.lease_expires_at
    if job.state in HELD:
        _take_away(session, job, left, "time_limit", message)
    failure = Failure(code="time_limit", category=FailureCategory.USER, message=message, retryable=True)
    job.failure = failure.model_copy(update={"attempt": job.attempt or None}).model_dump(mode="json")
    apply(session, job, Cause.DEADLINE, message=message)
    # Its trainer may live to the end of the lease, where the worker does not hear that it was taken: until then
    # nobody may claim the job, though its owner retries it at once.
    job.not_before = leased_until


def _take_away(session: Session, job: Job, left: _Left, code: str, message: str) -> Attempt:
    """Raise the fence of a held job, so that its holder is refused from now on, and end its attempt."""
    attempt = session.scalar(select(Attempt).where(Attempt.job_id == job.id, Attempt.number == job.attempt))
    assert attempt is not None, f"{job.id} is held without an attempt"
    # In a savepoint: whatever a trainer wrote, it must not keep the sweep from its work.
    try:
        with session.begin_nested():
            record_events(session, job, attempt, left.events)
    except Exception as error:
        logger.warning("%s: events of attempt %d are left out: %s", job.id, attempt.number, error)
    job.fence += 1
    category = FailureCategory.USER if code == "time_limit" else FailureCategory.INFRASTRUCTURE
    end_lost(session, attempt, Failure(code=code, category=category, message=message), left.log)
    return attempt


def _note(done: Recovered, job: Job) -> None:
    lists = {
        JobState.QUEUED: done.requeued,
        JobState.FAILED: done.failed,
        JobState.PAUSED: done.paused,
        JobState.CANCELLED: done.cancelled,
        JobState.EXPIRED: done.expired,
    }
    lists[job.state].append(job.id)


def to_announce(session: Session, wake_seconds: float) -> dict[str, int]:
    """Queued jobs to announce through the broker, in order, and how many accelerators each asks for.

    As many as slots are idle; those that were announced less than ``wake_seconds`` ago are left out, and these are
    noted as announced.
    """
    now = database_now(session)
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
        return {}
    first = select(Job.id, Job.gpus).where(due).order_by(Job.priority.desc(), Job.created_at, Job.id)
    jobs = {
        row.id: row.gpus for row in session.execute(first.limit(min(idle, _BATCH)).with_for_update(skip_locked=True))
    }
    # Not through the ORM: nothing that a client sees changes, so the versions stay.
    session.execute(
        update(Job).where(Job.id.in_(jobs)).values(dispatched_at=now).execution_options(synchronize_session=False)
    )
    return jobs


def doomed(session: Session) -> Doomed:
    """Let expire what has its time behind it, and find what is to be removed, at most 100 of each kind."""
    now = database_now(session)
    retention.expire(session, now)
    FileRepository(session).expire(now)
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.expires_at <= now))
    session.flush()
    checkpoints = (
        select(Checkpoint)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.deleting.is_(True), Job.deleting.is_(False))
    )
    return Doomed(
        jobs=_limited(session, select(Job.id).where(Job.deleting.is_(True))),
        checkpoints=[
            DoomedCheckpoint(row.id, row.job_id, row.attempt, row.path) for row in _limited(session, checkpoints)
        ],
        files=_limited(session, select(File.id).where(File.deleting.is_(True))),
    )


def _limited(session: Session, statement: Select[_Row]) -> list[_Row]:
    return list(session.scalars(statement.limit(_BATCH)))
