"""A job's measurements, by pages: no more than a page of them is ever in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from store.db.database import Database
from store.db.paging import Page
from store.db.tables import Job
from store.jobs.metrics import MetricRepository, Position, StepMetrics

PAGE_STEPS = 2000
"""Of a page of a download."""


@dataclass(frozen=True)
class Asked:
    """Which measurements, as :meth:`MetricRepository.series` takes them."""

    names: Collection[str] | None = None
    phase: str | None = None
    since_step: int = 0
    points: int | None = None


def page_of(
    session: Session, job: Job, asked: Asked, *, after: Position | None, limit: int | None
) -> Page[StepMetrics]:
    return MetricRepository(session).series(
        job,
        names=asked.names,
        phase=asked.phase,
        since_step=asked.since_step,
        points=asked.points,
        after=after,
        limit=limit,
    )


def all_of(database: Database, job: Job, asked: Asked, *, after: Position | None) -> Iterator[StepMetrics]:
    """Every page from `after` on, each read in a session of its own: who downloads slowly holds no connection."""
    # What is thinned is one page, as few as it is: the database would choose anew for each further one.
    limit = PAGE_STEPS if asked.points is None else None
    while True:
        with database.read() as session:
            found = page_of(session, job, asked, after=after, limit=limit)
        yield from found.items
        if not found.has_more:
            return
        after = found.items[-1].position


def names_of(session: Session, job: Job, asked: Asked) -> Sequence[str]:
    return MetricRepository(session).names(job, phase=asked.phase, since_step=asked.since_step)
