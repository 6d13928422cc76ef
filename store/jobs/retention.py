"""Which checkpoints stay: the newest few, the best, the pinned, and those that a fork or an attempt begins from.

Nothing here touches a disk. A checkpoint that shall go is marked ``deleting``; a sweep hands its
folder to the sweeper, and the row goes once the folder is gone.
"""

from __future__ import annotations

import datetime as dt

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session, aliased

from store.db.tables import Checkpoint, Job
from store.jobs.vocabulary import HELD, TERMINAL, Keep

NEWEST_FIRST = (Checkpoint.attempt.desc(), Checkpoint.created_at.desc(), Checkpoint.id.desc())


def retain(session: Session, job: Job) -> None:
    """Mark what earlier attempts left beyond the ``keep_checkpoints`` newest of the whole job.

    The current attempt's own folder is the trainer's to tidy.
    """
    rows = _live(session, job)
    for row in rows[job.keep_checkpoints :]:
        if row.attempt != job.attempt and not row.best:
            _mark(session, row)


def after_cancel(session: Session, job: Job) -> None:
    """Mark what a cancelled job shall not keep: all but the best, all but the last, or all.

    What a fork still needs of it goes by its expiry, once the fork has ended.
    """
    if job.keep is None:
        return
    rows = _live(session, job)
    chosen: Checkpoint | None = None
    if job.keep is Keep.LAST:
        chosen = next(iter(rows), None)
    elif job.keep is Keep.BEST:
        chosen = next((row for row in rows if row.best), next(iter(rows), None))
    for row in rows:
        if row is chosen:
            continue
        _mark(session, row)
        if not row.deleting and not row.pinned:
            row.expires_at = job.finished_at


def expire(session: Session, now: dt.datetime) -> None:
    """Mark the checkpoints whose ``expires_at`` has passed; one that is needed goes once it is not any more."""
    due = (
        select(Checkpoint)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.expires_at <= now, Checkpoint.deleting.is_(False), Checkpoint.pinned.is_(False))
        .where(~fork_needs(), ~_attempt_needs())
        .limit(100)
        # The job's row too, so that nobody claims or forks it meanwhile.
        .with_for_update(skip_locked=True)
    )
    for row in session.scalars(due).all():
        _mark(session, row)


def needed_by_fork(session: Session, checkpoint_id: str) -> bool:
    """Whether a job that is not yet terminal begins from this checkpoint."""
    return session.scalar(select(Checkpoint.id).where(Checkpoint.id == checkpoint_id, fork_needs())) is not None


def needed_by_attempt(session: Session, checkpoint_id: str) -> bool:
    """Whether the attempt that holds the job may go on from this checkpoint.

    It may until it has written one of its own: nothing short of that proves that its trainer is done with reading.
    """
    statement = select(Checkpoint.id).join(Job, Job.id == Checkpoint.job_id)
    return session.scalar(statement.where(Checkpoint.id == checkpoint_id, _attempt_needs())) is not None


def fork_needs() -> ColumnElement[bool]:
    """For a checkpoint: whether a job that is not yet terminal begins from it."""
    fork = aliased(Job)
    return select(fork.id).where(fork.forked_from == Checkpoint.id, fork.state.not_in(TERMINAL)).exists()


def _attempt_needs() -> ColumnElement[bool]:
    """For a checkpoint joined with its job. The claim gave out all these; the worker takes the newest that verify."""
    own = aliased(Checkpoint)
    return and_(
        Job.state.in_(HELD),
        Checkpoint.attempt > Job.resume_after_attempt,
        Checkpoint.attempt < Job.attempt,
        Checkpoint.resumable.is_(True),
        ~select(own.id).where(own.job_id == Job.id, own.attempt == Job.attempt).exists(),
    )


def _live(session: Session, job: Job) -> list[Checkpoint]:
    session.flush()
    rows = session.scalars(
        select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.deleting.is_(False)).order_by(*NEWEST_FIRST)
    )
    return list(rows)


def _mark(session: Session, row: Checkpoint) -> None:
    if not (row.pinned or needed_by_fork(session, row.id) or needed_by_attempt(session, row.id)):
        row.deleting = True
