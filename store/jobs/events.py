"""What happened to a job, and what was measured on the way."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.db.paging import Page
from store.db.tables import Event, Job, MetricPoint


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


@dataclass(frozen=True)
class Measurement:
    """One value of one metric; of attempts that went through the same step, the newest counts."""

    name: str
    phase: str
    step: int
    value: float
    attempt: int
    created_at: dt.datetime


class MetricRepository:
    """Metric points of a job that the caller has got through its owner."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def series(
        self,
        job: Job,
        *,
        names: Collection[str] | None = None,
        phase: str | None = None,
        since_step: int = 0,
        points: int | None = None,
    ) -> Sequence[Measurement]:
        """Measurements by phase in the order it ran, then step, then name.

        ``points`` thins each series (one name in one phase) to at most so many, evenly, its last
        always among them. Raises ValueError for ``points`` below 1.
        """
        if points is not None and points < 1:
            raise ValueError("points must be at least 1")
        statement = select(MetricPoint).where(MetricPoint.job_id == job.id, MetricPoint.step >= since_step)
        if phase is not None:
            statement = statement.where(MetricPoint.phase == phase)
        rows = self.session.scalars(statement.order_by(MetricPoint.attempt, MetricPoint.seq))
        wanted = set(names) if names is not None else None
        phases: dict[str, int] = {}
        newest: dict[tuple[str, str], dict[int, Measurement]] = {}
        for row in rows:
            phases.setdefault(row.phase, len(phases))
            for name, value in row.values.items():
                if wanted is None or name in wanted:
                    measurement = Measurement(name, row.phase, row.step, value, row.attempt, row.created_at)
                    newest.setdefault((row.phase, name), {})[row.step] = measurement
        chosen = [item for steps in newest.values() for item in _thin(sorted(steps.items()), points)]
        return sorted(chosen, key=lambda item: (phases[item.phase], item.step, item.name))


def _thin(steps: Sequence[tuple[int, Measurement]], points: int | None) -> list[Measurement]:
    count = len(steps)
    if points is None or count <= points:
        return [item for _, item in steps]
    if points == 1:
        return [steps[-1][1]]
    return [steps[round(index * (count - 1) / (points - 1))][1] for index in range(points)]
