"""Which checkpoints stay: the newest few, the best, the pinned, and those that a fork begins from.

Nothing here touches a disk. A checkpoint that shall go is marked ``deleting``; a sweep hands its
folder to the sweeper, and the row goes once the folder is gone.
"""

from __future__ import annotations

import datetime as dt

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.tables import Checkpoint, Job
from store.vocabulary import TERMINAL, Keep

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
    """Mark what a cancelled job shall not keep: all but the best, all but the last, or all."""
    if job.keep is None:
        return
    rows = _live(session, job)
    chosen: Checkpoint | None = None
    if job.keep is Keep.LAST:
        chosen = next(iter(rows), None)
    elif job.keep is Keep.BEST:
        chosen = next((row for row in rows if row.best), next(iter(rows), None))
    for row in rows:
        if row is not chosen:
            _mark(session, row)


def expire(session: Session, now: dt.datetime) -> None:
    """Mark the checkpoints whose ``expires_at`` has passed."""
    rows = session.scalars(
        select(Checkpoint).where(Checkpoint.expires_at <= now, Checkpoint.deleting.is_(False)).limit(100)
    )
    for row in rows.all():
        _mark(session, row)


def needed_by_fork(session: Session, checkpoint_id: str) -> bool:
    """Whether a job that is not yet terminal begins from this checkpoint."""
    fork = select(Job.id).where(Job.forked_from == checkpoint_id, Job.state.not_in(TERMINAL)).limit(1)
    return session.scalar(fork) is not None


def _live(session: Session, job: Job) -> list[Checkpoint]:
    session.flush()
    rows = session.scalars(
        select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.deleting.is_(False)).order_by(*NEWEST_FIRST)
    )
    return list(rows)


def _mark(session: Session, row: Checkpoint) -> None:
    if not row.pinned and not needed_by_fork(session, row.id):
        row.deleting = True
