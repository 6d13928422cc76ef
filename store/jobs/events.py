"""What happened to a job."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.db.paging import Page
from store.db.tables import Event, Job


class EventRepository:
    """Events of a job that the caller has got through its owner."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def list(self, job: Job, *, after: int = 0, limit: int = 100) -> Page[Event]:
        """Events with ``seq`` above ``after``, oldest first."""
        statement = select(Event).where(Event.job_id == job.id, Event.seq > after).order_by(Event.seq).limit(limit + 1)
        rows = self.session.scalars(statement).all()
        return Page(rows[:limit], len(rows) > limit)

    def latest(self, job: Job, *, before: int | None = None, limit: int = 100) -> Page[Event]:
        """Events with ``seq`` below ``before``, newest first."""
        statement = select(Event).where(Event.job_id == job.id).order_by(Event.seq.desc()).limit(limit + 1)
        if before is not None:
            statement = statement.where(Event.seq < before)
        rows = self.session.scalars(statement).all()
        return Page(rows[:limit], len(rows) > limit)
