"""What was measured on the way: the metric points of a job, whole or thinned by the database."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Subquery, and_, case, func, select, true
from sqlalchemy.orm import Session

from store.db.paging import Page
from store.db.tables import Job, MetricPoint

_COLUMNS = (
    MetricPoint.phase,
    MetricPoint.step,
    MetricPoint.attempt,
    MetricPoint.seq,
    MetricPoint.values,
    MetricPoint.created_at,
)
_IN_ORDER = (MetricPoint.step, MetricPoint.attempt, MetricPoint.seq)
_BATCH = 500

Position = tuple[str, int]
"""A phase and a step: where a page ended."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """The values of one step that one attempt measured last: a later attempt's count instead of them."""

    attempt: int
    phase: str
    step: int
    values: dict[str, float]
    created_at: dt.datetime

    @property
    def position(self) -> Position:
        return self.phase, self.step


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
        after: Position | None = None,
        limit: int | None = None,
    ) -> Page[StepMetrics]:
        """Measurements by phase in the order it ran, then step, then attempt.

        ``points`` thins each series (one name in one phase) to at most so many, evenly, its last always among them.
        ``limit`` steps make a page; ``after`` is the ``position`` of the last row of the page before. Raises
        ValueError for ``points`` or ``limit`` below 1.
        """
        if (points is not None and points < 1) or (limit is not None and limit < 1):
            raise ValueError("points and limit must be at least 1")
        wanted = frozenset(names) if names is not None else None
        phases = self._phases(job, phase)
        if points is None:
            steps = self._steps(job, phases, wanted, since_step, after)
        else:
            steps = iter(self._thinned(job, phases, wanted, since_step, points))
            if after is not None:
                place = _place(phases, *after)
                steps = (rows for rows in steps if _place(phases, *rows[0].position) > place)
        taken = list(steps if limit is None else itertools.islice(steps, limit + 1))
        has_more = limit is not None and len(taken) > limit
        return Page([row for rows in taken[:limit] for row in rows], has_more)

    def names(self, job: Job, *, phase: str | None = None, since_step: int = 0) -> Sequence[str]:
        """The name of every metric that was measured, sorted."""
        together = (MetricPoint.phase, MetricPoint.names_key)
        first = select(*together, func.min(MetricPoint.step).label("step")).where(*_of(job, phase, since_step))
        one = first.group_by(*together).subquery()
        same = (getattr(MetricPoint, name) == one.c[name] for name in ("phase", "names_key", "step"))
        samples = self.session.scalars(select(MetricPoint.values).join(one, and_(*same, MetricPoint.job_id == job.id)))
        return sorted({name for values in samples for name in values})

    def _phases(self, job: Job, phase: str | None) -> Sequence[str]:
        """The phases that measured something, in the order in which their first steps were measured."""
        first = select(MetricPoint.phase, func.min(MetricPoint.step).label("step")).where(MetricPoint.job_id == job.id)
        one = first.group_by(MetricPoint.phase).subquery()
        there = and_(MetricPoint.job_id == job.id, MetricPoint.phase == one.c.phase, MetricPoint.step == one.c.step)
        # One number of both, to take the least of: no attempt writes 2**40 events.
        number = func.min(MetricPoint.attempt * 2**40 + MetricPoint.seq)
        statement = select(MetricPoint.phase).join(one, there).group_by(MetricPoint.phase).order_by(number)
        found = self.session.scalars(statement).all()
        return [name for name in found if phase is None or name == phase]

    def _steps(
        self,
        job: Job,
        phases: Sequence[str],
        wanted: frozenset[str] | None,
        since_step: int,
        after: Position | None,
    ) -> Iterator[list[StepMetrics]]:
        """All steps, read as they are asked for."""
        for phase in phases:
            first = since_step
            if after is not None:
                if _place(phases, phase) < _place(phases, after[0]):
                    continue
                if phase == after[0]:
                    first = max(first, after[1] + 1)
            statement = select(*_COLUMNS).where(*_of(job, phase, first)).order_by(*_IN_ORDER)
            with self.session.execute(statement.execution_options(yield_per=_BATCH)) as rows:
                yield from _merged(rows, wanted)

    def _thinned(
        self, job: Job, phases: Sequence[str], wanted: frozenset[str] | None, since_step: int, points: int
    ) -> list[list[StepMetrics]]:
        """Few of the steps, chosen by the database from an index alone.

        Points that measured the same names are thinned together, which thins each of their series alike. A metric
        that is measured in several such companies (some steps also have dev scores) has too many points after that,
        and is thinned again here.
        """
        phase = phases[0] if len(phases) == 1 else None
        chosen = _chosen(_of(job, phase, since_step), points)
        statement = (
            select(*_COLUMNS)
            .join(chosen, and_(MetricPoint.phase == chosen.c.phase, MetricPoint.step == chosen.c.step))
            .where(MetricPoint.job_id == job.id)
            .order_by(MetricPoint.phase, *_IN_ORDER)
        )
        steps = list(_merged(self.session.execute(statement), wanted))
        series: dict[tuple[str, str], list[int]] = {}
        for rows in steps:
            for row in rows:
                for name in row.values:
                    series.setdefault((row.phase, name), []).append(row.step)
        kept = {key: frozenset(_evenly(places, points)) for key, places in series.items()}
        thinned = [[slim for row in rows if (slim := _slim(row, kept)).values] for rows in steps]
        return sorted((rows for rows in thinned if rows), key=lambda rows: _place(phases, *rows[0].position))


def names_key(names: Iterable[str]) -> int:
    """What points that measured the same names have in common: 64 bits of a hash of them."""
    digest = hashlib.blake2b("\n".join(sorted(names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def _chosen(where: tuple[ColumnElement[bool], ...], points: int) -> Subquery:
    """The (phase, step) of at most ``points`` steps, evenly, of each set of names that were measured together."""
    each = select(MetricPoint.phase, MetricPoint.names_key, MetricPoint.step).where(*where).distinct().subquery()
    together = (each.c.phase, each.c.names_key)
    place = (func.row_number().over(partition_by=together, order_by=each.c.step) - 1).label("place")
    last = (func.count().over(partition_by=together) - 1).label("last")
    ranked = select(each.c.phase, each.c.step, place, last).subquery()
    # The k-th of the chosen is round(k * last / gaps): a place is chosen where the k nearest to it gives it back.
    gaps = points - 1
    is_chosen = ranked.c.place == ranked.c.last
    if gaps:
        nearest = (2 * ranked.c.place * gaps + ranked.c.last) // (2 * ranked.c.last)
        back = (2 * nearest * ranked.c.last + gaps) // (2 * gaps)
        is_chosen = case((ranked.c.last <= gaps, true()), else_=back == ranked.c.place)
    return select(ranked.c.phase, ranked.c.step).where(is_chosen).distinct().subquery()


def _of(job: Job, phase: str | None, since_step: int) -> tuple[ColumnElement[bool], ...]:
    of_phase = () if phase is None else (MetricPoint.phase == phase,)
    return (MetricPoint.job_id == job.id, *of_phase, MetricPoint.step >= since_step)


def _place(phases: Sequence[str], phase: str, step: int = 0) -> tuple[int, int]:
    """Where a step stands among all; a phase that never ran stands behind everything."""
    return (phases.index(phase) if phase in phases else len(phases), step)


def _merged(rows: Iterable[Any], wanted: frozenset[str] | None) -> Iterator[list[StepMetrics]]:
    """Points in the order of phase, step, attempt and seq, one list a step; of each name the newest value counts."""
    for (phase, step), group in itertools.groupby(rows, key=lambda row: (row.phase, row.step)):
        points = list(group)
        newest = {
            name: (value, row)
            for row in points
            for name, value in row.values.items()
            if wanted is None or name in wanted
        }
        by_attempt: dict[int, tuple[dict[str, float], dt.datetime]] = {}
        for name in sorted(newest):
            value, row = newest[name]
            by_attempt.setdefault(row.attempt, ({}, row.created_at))[0][name] = value
        if by_attempt:
            yield [
                StepMetrics(attempt, phase, step, values, created_at)
                for attempt, (values, created_at) in sorted(by_attempt.items())
            ]


def _slim(row: StepMetrics, kept: dict[tuple[str, str], frozenset[int]]) -> StepMetrics:
    values = {name: value for name, value in row.values.items() if row.step in kept[row.phase, name]}
    return StepMetrics(row.attempt, row.phase, row.step, values, row.created_at)


def _evenly(steps: Sequence[int], points: int) -> Sequence[int]:
    last, gaps = len(steps) - 1, points - 1
    if last <= gaps:
        return steps
    if not gaps:
        return steps[-1:]
    return [steps[(2 * k * last + gaps) // (2 * gaps)] for k in range(points)]
