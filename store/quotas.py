"""What one owner may have: so many queued jobs, so many running ones, so many stored bytes. 0 is no limit.

A limit is checked at the end of the transaction that wants more, with the owner held until it has committed: of several
at the same time each counts what those before it have added.
"""

from __future__ import annotations

import enum

from sqlalchemy import Integer, bindparam, func, select, text
from sqlalchemy.orm import Session

from store.db.errors import QuotaExceeded
from store.db.tables import Checkpoint, File, Job, Model
from store.jobs.vocabulary import HELD, JobState

QUEUED_JOBS = "queued-jobs"
STORED_BYTES = "stored-bytes"


class _Held(enum.IntEnum):
    """Why an owner is held. Two reasons never wait for each other."""

    REQUEST = 0x6D696E31
    CLAIM = 0x6D696E32


_SOME = (
    select(Job.id)
    .where(Job.owner_id == bindparam("owner_id"), Job.state == JobState.QUEUED)
    .limit(bindparam("most", type_=Integer))
)
# Made once: it is asked for each new job.
_QUEUED = select(func.count()).select_from(_SOME.subquery())


def check_queued(session: Session, owner_id: str, limit: int) -> None:
    """Raise QuotaExceeded where the owner has more queued jobs than ``limit``, those of this session included."""
    if not limit:
        return
    session.flush()
    _hold(session, owner_id, _Held.REQUEST)
    if (session.scalar(_QUEUED, {"owner_id": owner_id, "most": limit + 1}) or 0) > limit:
        raise QuotaExceeded(QUEUED_JOBS, limit, f"there are {limit} queued jobs already, as many as one owner may have")


def check_stored(session: Session, owner_id: str, limit: int, *, more: int = 0) -> None:
    """Raise QuotaExceeded where the owner's files, checkpoints and students are larger than ``limit`` bytes.

    ``more`` is what a request would add that is not in the session yet.
    """
    if not limit:
        return
    session.flush()
    _hold(session, owner_id, _Held.REQUEST)
    stored = stored_bytes(session, owner_id)
    if stored + more > limit:
        raise QuotaExceeded(
            STORED_BYTES,
            limit,
            f"files, checkpoints and students have {stored:,} bytes and one owner may have {limit:,}: "
            "delete jobs and files that are no longer needed",
        )


def stored_bytes(session: Session, owner_id: str) -> int:
    """Size of the owner's files, checkpoints and students."""
    sizes = (
        select(func.sum(File.bytes)).where(File.owner_id == owner_id),
        select(func.sum(Checkpoint.bytes)).join(Job, Job.id == Checkpoint.job_id).where(Job.owner_id == owner_id),
        select(func.sum(Model.bytes)).where(Model.owner_id == owner_id),
    )
    return sum(int(session.scalar(size) or 0) for size in sizes)


def may_run(session: Session, owner_id: str, limit: int) -> bool:
    """Whether one more of the owner's jobs may run; until the transaction has committed no other is asked."""
    _hold(session, owner_id, _Held.CLAIM)
    running = select(func.count()).select_from(Job).where(Job.owner_id == owner_id, Job.state.in_(HELD))
    return (session.scalar(running) or 0) < limit


def _hold(session: Session, owner_id: str, why: _Held) -> None:
    """Wait for whoever holds the owner for the same reason. On SQLite there is but one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        held = text("SELECT pg_advisory_xact_lock(:why, hashtext(:owner))")
        session.execute(held, {"why": int(why), "owner": owner_id})
