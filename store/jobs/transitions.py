"""The life of a job: one table of transitions, and the one function that applies one.

Every change of ``Job.state`` goes through :func:`apply`, which checks it against the table and
writes its event with the job's next sequence number in the same transaction. Callers hold the
job's row lock (:func:`lock`), so sequence numbers have no gaps and no duplicates.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from store.db.clock import database_now
from store.db.errors import InvalidTransition, NotFound
from store.db.ids import new_id
from store.db.printable import printable, printable_data
from store.db.tables import Event, Job
from store.jobs.vocabulary import ALIVE
from store.jobs.vocabulary import HELD as HELD
from store.jobs.vocabulary import TERMINAL as TERMINAL
from store.jobs.vocabulary import Cause as Cause
from store.jobs.vocabulary import DesiredState as DesiredState
from store.jobs.vocabulary import JobState as JobState

_S = JobState


def _each(states: frozenset[JobState] | set[JobState], cause: Cause, *to: JobState) -> dict[Any, frozenset[JobState]]:
    return {(state, cause): frozenset(to) for state in states}


TRANSITIONS: Mapping[tuple[JobState | None, Cause], frozenset[JobState]] = {
    (None, Cause.CREATE): frozenset({_S.QUEUED}),
    (_S.QUEUED, Cause.CLAIM): frozenset({_S.STARTING}),
    (_S.STARTING, Cause.FIRST_PROGRESS): frozenset({_S.RUNNING}),
    # what the user asks for
    **_each({_S.QUEUED, _S.PAUSED}, Cause.CANCEL, _S.CANCELLED),
    **_each({_S.STARTING, _S.RUNNING, _S.PAUSING}, Cause.CANCEL, _S.CANCELLING),
    **_each({_S.STARTING, _S.RUNNING}, Cause.PAUSE, _S.PAUSING),
    (_S.QUEUED, Cause.PAUSE): frozenset({_S.PAUSED}),
    (_S.PAUSED, Cause.RESUME): frozenset({_S.QUEUED}),
    **_each({_S.FAILED, _S.EXPIRED}, Cause.RETRY, _S.QUEUED),
    # what the holder reports
    (_S.CANCELLING, Cause.CANCEL_DONE): frozenset({_S.CANCELLED}),
    (_S.PAUSING, Cause.PAUSE_DONE): frozenset({_S.PAUSED}),
    **_each({_S.STARTING, _S.RUNNING}, Cause.INTERRUPTED, _S.QUEUED),
    **_each({_S.RUNNING, _S.PAUSING, _S.CANCELLING}, Cause.STUDENT_COMMITTED, _S.SUCCEEDED),
    **_each({_S.STARTING, _S.RUNNING, _S.PAUSING}, Cause.USER_ERROR, _S.FAILED),
    **_each({_S.STARTING, _S.RUNNING, _S.PAUSING}, Cause.SYSTEM_ERROR, _S.FAILED),
    **_each({_S.STARTING, _S.RUNNING}, Cause.INFRASTRUCTURE_ERROR, _S.QUEUED, _S.FAILED),
    (_S.PAUSING, Cause.INFRASTRUCTURE_ERROR): frozenset({_S.PAUSED, _S.FAILED}),
    # what the sweeper finds
    **_each({_S.STARTING, _S.RUNNING}, Cause.LEASE_EXPIRED, _S.QUEUED, _S.FAILED),
    (_S.PAUSING, Cause.LEASE_EXPIRED): frozenset({_S.PAUSED, _S.FAILED}),
    (_S.CANCELLING, Cause.LEASE_EXPIRED): frozenset({_S.CANCELLED}),
    (_S.CANCELLING, Cause.CANCEL_GRACE_ELAPSED): frozenset({_S.CANCELLED}),
    **_each(ALIVE, Cause.DEADLINE, _S.EXPIRED),
}
"""(state left, cause) -> states that may follow."""


def allowed(state: JobState | None, cause: Cause) -> bool:
    """Whether the table knows any change of ``state`` by ``cause``."""
    return (state, cause) in TRANSITIONS


def lock(session: Session, job_id: str) -> Job:
    """The job's row, fresh and locked to the end of the transaction. Raises NotFound."""
    statement = select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    job = session.scalar(statement)
    if job is None:
        raise NotFound("job", job_id)
    return job


def apply(
    session: Session,
    job: Job,
    cause: Cause,
    to: JobState | None = None,
    *,
    message: str = "",
    level: str | None = None,
    data: Mapping[str, Any] | None = None,
    now: dt.datetime | None = None,
) -> None:
    """Change the state of a locked job and write the event of it.

    ``to`` may be left out where the table allows one state alone. Raises InvalidTransition,
    leaving everything as it was, for a change that the table does not have. Leaving a held state
    gives the lease back; entering a terminal one sets ``finished_at``. ``level`` is that of the event, `info` when
    left out, or `error` for a failure.
    """
    was: JobState | None = job.state
    choices = TRANSITIONS.get((None if cause is Cause.CREATE else was, cause), frozenset())
    if to is None:
        if len(choices) != 1:
            raise InvalidTransition(was, cause)
        (to,) = choices
    elif to not in choices:
        raise InvalidTransition(was, cause, to)
    now = now or database_now(session)
    if cause is not Cause.CREATE:
        job.state = to
    if to not in HELD:
        job.lease_owner = None
        job.lease_expires_at = None
        job.phase = None
        job.tokens_per_second = None
    if to in TERMINAL:
        job.finished_at = now
        job.not_before = None
        job.seconds_left = None
    else:
        job.finished_at = None
    edge = {"from": None if cause is Cause.CREATE else str(was), "to": str(to), "cause": str(cause)}
    level = level or ("error" if to in (_S.FAILED, _S.EXPIRED) else "info")
    add_event(session, job, "state", code=str(to), message=message, level=level, data={**(data or {}), **edge}, now=now)


_INSERT_EVENT = insert(Event)


def add_event(
    session: Session,
    job: Job,
    type: str,
    *,
    code: str,
    message: str = "",
    level: str = "info",
    data: Mapping[str, Any] | None = None,
    now: dt.datetime | None = None,
) -> None:
    """Write an event with the next sequence number of a locked job; also raises the job's version."""
    now = now or database_now(session)
    job.event_seq += 1
    job.updated_at = now
    session.flush()
    # Straight into its table: there are many events, and nobody changes one.
    session.connection().execute(
        _INSERT_EVENT,
        {
            "job_id": job.id,
            "seq": job.event_seq,
            "id": new_id("evt"),
            "type": type,
            "level": level,
            "code": printable(code)[:100],
            "message": printable(message),
            "data": printable_data(dict(data or {})),
            "attempt": job.attempt or None,
            "created_at": now,
        },
    )
