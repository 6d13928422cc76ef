"""A job's events, read again and again by who watches it."""

from __future__ import annotations

from collections.abc import Sequence

from store.db.database import Database
from store.db.tables import Event, Job
from store.jobs.events import EventRepository
from store.jobs.repository import JobRepository
from store.jobs.transitions import TERMINAL

_BATCH = 500


def follow(database: Database, job: Job, after: int) -> tuple[Sequence[Event], bool]:
    """Events after a sequence number, and whether the job had come to its end before they were read.

    Raises store.db.errors.NotFound for a job that has been deleted meanwhile.
    """
    with database.read() as session:
        state = JobRepository(session).get(job.owner_id, job.id).state
        found = EventRepository(session).list(job, after=after, limit=_BATCH)
        return found.items, state in TERMINAL and not found.has_more
