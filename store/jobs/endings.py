"""How an attempt ends, and what becomes of its job: done, failed, retried, paused, cancelled, expired."""

from __future__ import annotations

import datetime as dt
import enum
import logging
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session, load_only
from sqlalchemy.orm.util import identity_key

from minillm_core.spec import Failure, FailureCategory
from minillm_core.spec.model_folder import ModelDescription
from store.bytes import runs
from store.db.clock import database_now
from store.db.database import DATABASE_AWAY
from store.db.errors import UnverifiedArtifact
from store.db.ids import new_id
from store.db.printable import log_tail, printable, printable_data
from store.db.tables import Attempt, Job, Model
from store.jobs import retention
from store.jobs.artifacts import ArtifactRepository
from store.jobs.kinds import KINDS
from store.jobs.transitions import apply
from store.jobs.vocabulary import ArtifactKind, AttemptState, Cause, DesiredState, JobState
from store.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """How infrastructure failures are retried; each job also has its own ``max_attempts``."""

    base_seconds: float = 5.0
    max_seconds: float = 300.0
    max_stalled_attempts: int = 3

    @classmethod
    def of(cls, settings: Settings) -> RetryPolicy:
        return cls(settings.retry_base_seconds, settings.retry_max_seconds, settings.max_stalled_attempts)

    def backoff(self, retries: int) -> dt.timedelta:
        """The wait before the ``retries``-th automatic retry (1, 2, ...): doubling, bounded."""
        return dt.timedelta(seconds=min(self.max_seconds, self.base_seconds * 2.0 ** min(retries - 1, 60)))


@dataclass(frozen=True)
class Student:
    """An exported student whose files the worker has compared with its manifest."""

    manifest: bytes
    """Content of the student folder's ``manifest.json``; its sha256 must be the one the trainer reported."""
    description: ModelDescription
    """What :func:`minillm_core.spec.model_folder.inspect_model` says of the folder."""


class _Kind(enum.Enum):
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    STOPPED = enum.auto()


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt; made by :meth:`succeeded`, :meth:`failed` or :meth:`stopped`."""

    kind: _Kind
    exit_code: int | None = None
    signal: int | None = None
    student: Student | None = None
    failure: Failure | None = None
    log: bytes | None = None

    @classmethod
    def succeeded(cls, student: Student, *, exit_code: int = 0) -> Outcome:
        """The student is committed and verified."""
        return cls(_Kind.SUCCEEDED, exit_code=exit_code, student=student)

    @classmethod
    def failed(
        cls, failure: Failure, *, exit_code: int | None = None, signal: int | None = None, log: bytes | None = None
    ) -> Outcome:
        """``log``: the end of the trainer's output; the last 64 kB of it are kept, control characters filtered."""
        return cls(_Kind.FAILED, exit_code=exit_code, signal=signal, failure=failure, log=log)

    @classmethod
    def stopped(cls, *, exit_code: int | None = None, signal: int | None = None) -> Outcome:
        """Stopped as asked: by a cancel, a pause, or for the worker's own reasons (drain, deploy)."""
        return cls(_Kind.STOPPED, exit_code=exit_code, signal=signal)


def settle(session: Session, job: Job, attempt: Attempt, outcome: Outcome, policy: RetryPolicy) -> None:
    """End ``attempt`` of the locked, held ``job`` and apply what follows.

    - succeeded: `succeeded`, whatever was desired, and the student becomes a model;
    - any other end of a job being cancelled: `cancelled`;
    - stopped: `paused`, or `queued` where nobody asked (an interruption counts against nothing);
    - failed with code `time_limit` on a job that has a deadline: `expired`;
    - failed by the user or by us: `failed`; by infrastructure: `queued` with backoff while the
      job's bounds allow (`paused` where that was asked for), else `failed`.
    """
    if outcome.kind is _Kind.SUCCEEDED:
        assert outcome.student is not None
        _succeed(session, job, attempt, outcome.student, outcome)
    elif outcome.kind is _Kind.FAILED:
        assert outcome.failure is not None
        _end(session, attempt, AttemptState.FAILED, outcome)
        attempt.failure = _failure(outcome.failure, attempt)
        attempt.log_tail = log_tail(outcome.log) if outcome.log is not None else None
        fail(session, job, attempt, outcome.failure, policy)
    else:
        _end(session, attempt, AttemptState.STOPPED, outcome)
        _stop(session, job, outcome)
    resume_if_wanted(session, job)


def fail(
    session: Session, job: Job, attempt: Attempt, failure: Failure, policy: RetryPolicy, cause: Cause | None = None
) -> None:
    """Move a held job on after its ended ``attempt`` failed. ``cause`` replaces `infrastructure_error`."""
    if job.state is JobState.CANCELLING:
        cancel_finally(session, job, Cause.CANCEL_DONE if cause is None else cause)
        return
    job.failure = _failure(failure, attempt)
    if failure.code == "time_limit" and job.deadline_at is not None:
        apply(session, job, Cause.DEADLINE, message=failure.message)
    elif failure.category is FailureCategory.INFRASTRUCTURE:
        _retry_or_fail(session, job, attempt, failure, policy, cause or Cause.INFRASTRUCTURE_ERROR)
    else:
        user = failure.category is FailureCategory.USER
        apply(session, job, Cause.USER_ERROR if user else Cause.SYSTEM_ERROR, message=failure.message)


def cancel_finally(session: Session, job: Job, cause: Cause) -> None:
    """`cancelling` (or, at once, `queued` and `paused`) to `cancelled`, keeping what was asked for."""
    apply(session, job, cause, JobState.CANCELLED, message="Cancelled")
    retention.after_cancel(session, job)


def resume_if_wanted(session: Session, job: Job) -> None:
    """A resume that came while the job was still pausing takes effect once it is paused."""
    if job.state is JobState.PAUSED and job.desired_state is DesiredState.RUN:
        apply(session, job, Cause.RESUME, message="Resumed")


def end_lost(session: Session, attempt: Attempt, failure: Failure, log: bytes | None) -> None:
    """End an attempt whose worker can no longer say how it went."""
    _end(session, attempt, AttemptState.LOST, Outcome.failed(failure))
    attempt.failure = _failure(failure, attempt)
    attempt.log_tail = log_tail(log) if log is not None else None


def give_up(session: Session, job_id: str, error: Exception) -> None:
    """Fail a job whose row cannot be worked with, so that it stops neither those who claim nor those who sweep.

    Such a row is of another release, or damaged. Nothing of it is read but what a change of its state needs; where
    even that cannot be done it is logged, and the row stays as it is. Raises an error of ``DATABASE_AWAY``.
    """
    try:
        with session.begin_nested():
            _give_up(session, job_id, error)
    except DATABASE_AWAY:
        raise
    except Exception:
        logger.exception("%s: the job cannot be failed either", job_id)


def _give_up(session: Session, job_id: str, error: Exception) -> None:
    if (loaded := session.identity_map.get(identity_key(Job, job_id))) is not None:
        session.expunge(loaded)
    needed = load_only(Job.id, Job.state, Job.attempt, Job.fence, Job.event_seq, Job.version)
    job = session.scalars(select(Job).where(Job.id == job_id).options(needed)).one()
    message = f"This release cannot work with what is stored of the job ({type(error).__name__}): submit it again"
    failure = Failure(code="job_unreadable", category=FailureCategory.SYSTEM, message=message)
    job.fence += 1
    now = database_now(session)
    ended = {"state": AttemptState.LOST, "ended_at": now, "failure": failure.model_dump(mode="json")}
    active = (Attempt.job_id == job_id, Attempt.state == AttemptState.ACTIVE)
    session.execute(update(Attempt).where(*active).values(ended).execution_options(synchronize_session=False))
    if job.state is JobState.QUEUED:
        apply(session, job, Cause.CLAIM)
    job.failure = failure.model_dump(mode="json")
    if job.state is JobState.CANCELLING:
        apply(session, job, Cause.CANCEL_GRACE_ELAPSED, message=message)
    elif job.state is JobState.PAUSED:
        apply(session, job, Cause.DEADLINE, message=message)
    else:
        apply(session, job, Cause.SYSTEM_ERROR, message=message)


def _succeed(session: Session, job: Job, attempt: Attempt, student: Student, outcome: Outcome) -> None:
    artifacts = ArtifactRepository(session)
    artifact = artifacts.verify(attempt, ArtifactKind.STUDENT, student.manifest)
    if missing := artifacts.missing(attempt, KINDS[job.kind].required):
        raise UnverifiedArtifact(f"{job.id} has not left what it must: {', '.join(sorted(missing))}")
    _end(session, attempt, AttemptState.SUCCEEDED, outcome)
    artifact.model_id = new_id("model")
    session.add(
        Model(
            id=artifact.model_id,
            owner_id=job.owner_id,
            reference=artifact.model_id,
            kind="student",
            name=job.name or job.id,
            path=runs.relative(job.id, attempt.number, artifact.path),
            job_id=job.id,
            created_at=database_now(session),
            **student.description.columns(),
        )
    )
    job.fraction = job.furthest_fraction = 1.0
    job.failure = None
    if job.state is JobState.STARTING:  # every event came in one batch with no sign of work in it
        apply(session, job, Cause.FIRST_PROGRESS)
    apply(session, job, Cause.STUDENT_COMMITTED, message="The student is ready", data={"model": artifact.model_id})


def _stop(session: Session, job: Job, outcome: Outcome) -> None:
    if job.state is JobState.CANCELLING:
        cancel_finally(session, job, Cause.CANCEL_DONE)
    elif job.state is JobState.PAUSING:
        if outcome.signal is None:
            apply(session, job, Cause.PAUSE_DONE, message="Paused")
        else:
            message = (
                "Paused; the trainer did not stop in time, and what it did since its last checkpoint was not saved"
            )
            apply(session, job, Cause.PAUSE_DONE, message=message, level="warning")
    else:
        apply(session, job, Cause.INTERRUPTED, message="The worker handed the job back")


def _retry_or_fail(
    session: Session, job: Job, attempt: Attempt, failure: Failure, policy: RetryPolicy, cause: Cause
) -> None:
    job.retries += 1
    job.stalled = 0 if attempt.advanced else job.stalled + 1
    reason = None
    if job.retries >= job.max_attempts:
        reason = f"{job.retries} of {job.max_attempts} attempts failed"
    elif job.stalled >= policy.max_stalled_attempts:
        reason = f"{job.stalled} attempts in a row came no further"
    elif failure.code == "out_of_memory" and _same_out_of_memory(session, job, attempt):
        reason = "it ran out of memory twice at the same step"
    if reason is not None:
        apply(session, job, cause, JobState.FAILED, message=f"{failure.message} ({reason})")
    elif job.state is JobState.PAUSING:
        apply(session, job, cause, JobState.PAUSED, message=f"Paused, but not cleanly: {failure.message}")
    else:
        wait = policy.backoff(job.retries)
        job.not_before = database_now(session) + wait
        job.failure = _failure(failure, attempt, retryable=True)
        apply(
            session,
            job,
            cause,
            JobState.QUEUED,
            message=f"{failure.message}; it is tried again in {wait.total_seconds():g} s",
            data={"retry": job.retries, "not_before": job.not_before.isoformat()},
        )


def _same_out_of_memory(session: Session, job: Job, attempt: Attempt) -> bool:
    """Whether another infrastructure failure since the user's last say was the same, at the same step."""
    if job.retries < 2:
        return False
    earlier = session.scalars(
        select(Attempt)
        .where(Attempt.job_id == job.id, Attempt.number < attempt.number)
        .where(Attempt.state.in_((AttemptState.FAILED, AttemptState.LOST)))
        .order_by(Attempt.number.desc())
        .limit(job.retries - 1)
    )
    return any(
        row.failure is not None
        and row.failure.get("code") == "out_of_memory"
        and (row.phase, row.step) == (attempt.phase, attempt.step)
        for row in earlier
    )


def _end(session: Session, attempt: Attempt, state: AttemptState, outcome: Outcome) -> None:
    attempt.state = state
    attempt.ended_at = database_now(session)
    attempt.exit_code = outcome.exit_code
    attempt.signal = outcome.signal


def _failure(failure: Failure, attempt: Attempt, retryable: bool | None = None) -> dict[str, object]:
    fields = {**failure.model_dump(mode="json"), "attempt": attempt.number, "message": printable(failure.message)}
    if retryable is not None:
        fields["retryable"] = retryable
    clean: dict[str, object] = printable_data(fields)
    return clean
