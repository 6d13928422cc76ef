"""Claims, leases and fences: how at most one attempt of a job has any say.

A claim raises ``Job.fence``. Every later write of that attempt names its fence, and a write whose
fence is not the row's raises :class:`store.db.errors.StaleAttempt`: its supervisor must then kill its
own process group. Leases are judged by the database's clock alone.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from minillm_core.spec import TrainerEvent
from store.db.clock import database_now
from store.db.database import DATABASE_AWAY
from store.db.errors import NotFound, StaleAttempt
from store.db.ids import new_id
from store.db.tables import Attempt, Checkpoint, Job, Worker
from store.jobs import retention
from store.jobs.endings import Outcome as Outcome
from store.jobs.endings import RetryPolicy, give_up, settle
from store.jobs.endings import Student as Student
from store.jobs.placement import Devices
from store.jobs.recording import record_events
from store.jobs.transitions import add_event, apply, lock
from store.jobs.vocabulary import HELD, AttemptState, Cause, DesiredState, JobState, Keep
from store.quotas import may_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to resume from."""

    job_id: str
    attempt: int
    path: str
    """Folder, relative to the RUN_DIR of that job's attempt."""
    manifest_sha256: str
    phase: str
    step: int


@dataclass(frozen=True)
class Claim:
    """The right to run one attempt of a job, until its lease expires or its fence is passed."""

    job_id: str
    owner_id: str
    attempt: int
    attempt_id: str
    fence: int
    worker_id: str
    spec: str
    """JSON text of the job's :class:`minillm_core.spec.JobSpec`."""
    seed: int
    resume: tuple[ResumePoint, ...]
    """Resumable checkpoints of earlier attempts (and of the job forked from), newest first."""
    forked: bool
    """Whether it begins from another job's checkpoint, and so can never begin afresh."""
    lease_expires_at: dt.datetime
    seconds_to_deadline: float | None
    """Time left of `max_runtime_seconds` at the claim."""


@dataclass(frozen=True)
class Desired:
    """What the holder shall do, as a renewal of its lease learns it."""

    state: DesiredState
    keep: Keep | None
    """With `cancel`: `none` needs no checkpoint on the way out."""
    drain: bool
    """Whether the worker shall checkpoint, hand its job back and take no more."""
    lease_expires_at: dt.datetime
    seconds_to_deadline: float | None
    pinned: frozenset[str]
    """Checkpoints in the attempt's own run folder that must stay, as paths relative to it: pinned, or a fork's."""


def claim(
    session: Session,
    worker_id: str,
    host: str,
    pid: int,
    lease_seconds: float,
    job_id: str | None = None,
    *,
    devices: Devices | None = None,
    running_per_owner: int = 0,
) -> Claim | None:
    """Take the next queued job (or ``job_id``, if it is one): highest priority first, then oldest.

    Jobs whose backoff has not passed are left alone, and those that need other devices than ``devices``: what the
    claiming slot has, each slot's share of the worker's row when left out. So are those of owners who have
    ``running_per_owner`` jobs running (0: no limit). Returns None where there is nothing to take
    or where the worker, if it is registered, drains or has a dirty slot. ``pid`` is the
    supervisor's. Needs a write session; the claim holds once the transaction is committed.

    A job whose row cannot be worked with, whatever is wrong in it, is failed, and the next one taken.
    """
    worker = session.get(Worker, worker_id)
    if worker is not None and (worker.draining or worker.slot_dirty is not None):
        return None
    now = database_now(session)
    candidate = (
        select(Job.id)
        .where(*_claimable(now))
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if devices is None and worker is not None:
        devices = Devices.of_worker(worker)
    if devices is not None:
        candidate = candidate.where(devices.suits())
    if job_id is not None:
        candidate = candidate.where(Job.id == job_id)
    passed_over: list[str] = []
    have_enough: list[str] = []
    while (
        found := session.scalar(candidate.where(Job.id.not_in(passed_over), Job.owner_id.not_in(have_enough)))
    ) is not None:
        if running_per_owner:
            owner_id = session.scalars(select(Job.owner_id).where(Job.id == found)).one()
            if not may_run(session, owner_id, running_per_owner):
                have_enough.append(owner_id)
                continue
        try:
            with session.begin_nested():
                return _take(session, found, worker_id, host, pid, lease_seconds, now)
        except (*DATABASE_AWAY, StaleDataError):
            raise  # it is not the job's fault
        except Exception as error:
            logger.exception("%s: the job cannot be started", found)
            give_up(session, found, error)
            passed_over.append(found)
    return None


def _take(
    session: Session, job_id: str, worker_id: str, host: str, pid: int, lease_seconds: float, now: dt.datetime
) -> Claim:
    job = session.get_one(Job, job_id, populate_existing=True)
    # The flush inside apply() is UPDATE ... WHERE id = ? AND version = ?, so even without the row
    # lock (SQLite has none) two claims of one version cannot both succeed.
    job.attempt += 1
    job.fence += 1
    job.lease_owner = worker_id
    job.lease_expires_at = now + dt.timedelta(seconds=lease_seconds)
    job.not_before = None
    job.dispatched_at = None
    # What the last attempt left unfinished is not this one's: its failure stays in its own row.
    job.step = job.total_steps = job.seconds_left = None
    job.failure = job.report = None
    job.teacher_parameters = None
    job.started_at = job.started_at or now
    if job.deadline_at is None and job.max_runtime_seconds is not None:
        job.deadline_at = now + dt.timedelta(seconds=job.max_runtime_seconds)
    attempt = Attempt(
        id=new_id("att"),
        job_id=job.id,
        number=job.attempt,
        fence=job.fence,
        state=AttemptState.ACTIVE,
        worker_id=worker_id,
        host=host,
        supervisor_pid=pid,
        started_at=now,
        heartbeat_at=now,
        advanced=False,
        recorded_seq=0,
    )
    session.add(attempt)
    apply(session, job, Cause.CLAIM, message=f"Attempt {job.attempt} started", data={"worker": worker_id, "host": host})
    return Claim(
        job_id=job.id,
        owner_id=job.owner_id,
        attempt=job.attempt,
        attempt_id=attempt.id,
        fence=job.fence,
        worker_id=worker_id,
        spec=job.spec,
        seed=job.seed,
        resume=_resume_points(session, job),
        forked=job.forked_from is not None,
        lease_expires_at=job.lease_expires_at,
        seconds_to_deadline=_seconds_until(job.deadline_at, now),
    )


def waiting(
    session: Session, worker_id: str, *, devices: Collection[Devices], limit: int, running_per_owner: int = 0
) -> int:
    """How many jobs slots with ``devices`` could claim now, at most ``limit``; 0 where their worker drains.

    Takes no lock. Raises NotFound for a worker that is not registered.
    """
    worker = session.get(Worker, worker_id)
    if worker is None:
        raise NotFound("worker", worker_id)
    if worker.draining:
        return 0
    found = select(Job.id).where(*_claimable(database_now(session)), or_(*(kind.suits() for kind in devices)))
    if running_per_owner:
        running = select(Job.owner_id).where(Job.state.in_(HELD)).group_by(Job.owner_id)
        found = found.where(Job.owner_id.not_in(running.having(func.count(Job.id) >= running_per_owner)))
    return len(session.scalars(found.limit(limit)).all())


def _claimable(now: dt.datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        Job.state == JobState.QUEUED,
        Job.deleting.is_(False),
        or_(Job.not_before.is_(None), Job.not_before <= now),
    )


def renew(session: Session, claim: Claim, lease_seconds: float) -> Desired:
    """Extend the lease to ``lease_seconds`` from now and learn what is wanted. Raises StaleAttempt.

    A lease that has expired but that no sweep has taken yet is renewed: the job is healthy. Does
    not touch the job's version, so that polling clients keep their 304.
    """
    now = database_now(session)
    expires = now + dt.timedelta(seconds=lease_seconds)
    row = session.execute(
        update(Job)
        .where(Job.id == claim.job_id, Job.fence == claim.fence, Job.state.in_(HELD))
        .values(lease_expires_at=expires)
        .returning(Job.state, Job.desired_state, Job.keep, Job.deadline_at)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        raise StaleAttempt(claim.job_id, claim.attempt, claim.fence)
    session.execute(
        update(Attempt)
        .where(Attempt.id == claim.attempt_id)
        .values(heartbeat_at=now)
        .execution_options(synchronize_session=False)
    )
    draining = session.scalar(select(Worker.draining).where(Worker.id == claim.worker_id))
    pinned = select(Checkpoint.path).where(
        Checkpoint.job_id == claim.job_id,
        Checkpoint.attempt == claim.attempt,
        or_(Checkpoint.pinned.is_(True), retention.fork_needs()),
    )
    # A resume takes effect once the job is paused, also where it came before the holder heard of the pause: a
    # trainer that went on would be called `pausing` to its end.
    pausing = row.state is JobState.PAUSING and row.desired_state is DesiredState.RUN
    return Desired(
        state=DesiredState.PAUSE if pausing else row.desired_state,
        keep=row.keep,
        drain=bool(draining),
        lease_expires_at=expires,
        seconds_to_deadline=_seconds_until(row.deadline_at, now),
        pinned=frozenset(session.scalars(pinned)),
    )


def record_process(session: Session, claim: Claim, pid: int, pid_started: int | None) -> None:
    """Note the trainer's process (``pid_started``: see Attempt). Raises StaleAttempt."""
    _, attempt = hold(session, claim)
    attempt.pid = pid
    attempt.pid_started = pid_started


def record(session: Session, claim: Claim, events: Sequence[TrainerEvent]) -> int:
    """Put trainer events into the store: events, metrics, checkpoints, progress. Raises StaleAttempt.

    Idempotent: an event whose ``seq`` the attempt has recorded already is skipped. The first sign
    of work moves the job from `starting` to `running`. Returns the newest recorded ``seq``.
    """
    job, attempt = hold(session, claim)
    record_events(session, job, attempt, events)
    return attempt.recorded_seq


def pass_over(session: Session, claim: Claim, point: ResumePoint, reason: str, *, lasting: bool) -> None:
    """Say that a checkpoint could not be resumed from; ``lasting``: nor can it ever. Raises StaleAttempt."""
    job, _ = hold(session, claim)
    if lasting:
        damaged = (
            Checkpoint.job_id == point.job_id,
            Checkpoint.attempt == point.attempt,
            Checkpoint.path == point.path,
            Checkpoint.manifest_sha256 == point.manifest_sha256,
        )
        session.execute(update(Checkpoint).where(*damaged).values(resumable=False))
    add_event(
        session,
        job,
        "message",
        code="checkpoint_damaged",
        level="warning",
        message=f"A checkpoint is passed over: {reason}",
        data={"attempt": point.attempt, "path": point.path, "step": point.step},
    )


def finish(session: Session, claim: Claim, outcome: Outcome, policy: RetryPolicy | None = None) -> JobState:
    """End the attempt and move the job on: see :func:`store.jobs.endings.settle`.

    Record the last events first. Returns the job's new state. Raises StaleAttempt, and
    UnverifiedArtifact for a success whose manifest is not the one the trainer reported.
    """
    job, attempt = hold(session, claim)
    settle(session, job, attempt, outcome, policy or RetryPolicy())
    return job.state


def hold(session: Session, claim: Claim) -> tuple[Job, Attempt]:
    """The locked job and the attempt of a claim that still holds it. Raises StaleAttempt."""
    try:
        job = lock(session, claim.job_id)
    except NotFound:
        raise StaleAttempt(claim.job_id, claim.attempt, claim.fence) from None
    attempt = session.get(Attempt, claim.attempt_id, populate_existing=True)
    if job.fence != claim.fence or job.state not in HELD or attempt is None or attempt.state != AttemptState.ACTIVE:
        raise StaleAttempt(claim.job_id, claim.attempt, claim.fence)
    return job, attempt


def _resume_points(session: Session, job: Job) -> tuple[ResumePoint, ...]:
    rows = session.scalars(
        select(Checkpoint)
        .where(Checkpoint.job_id == job.id, Checkpoint.attempt > job.resume_after_attempt)
        .where(Checkpoint.resumable.is_(True), Checkpoint.deleting.is_(False))
        .order_by(*retention.NEWEST_FIRST)
    ).all()
    points = [_resume_point(row) for row in rows]
    if job.forked_from is not None:
        origin = session.get(Checkpoint, job.forked_from)
        if origin is not None and not origin.deleting:
            points.append(_resume_point(origin))
    return tuple(points)


def _resume_point(row: Checkpoint) -> ResumePoint:
    return ResumePoint(row.job_id, row.attempt, row.path, row.manifest_sha256, row.phase, row.step)


def _seconds_until(deadline: dt.datetime | None, now: dt.datetime) -> float | None:
    return None if deadline is None else max(0.0, (deadline - now).total_seconds())
