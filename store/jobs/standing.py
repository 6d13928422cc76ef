"""Where a job stands that waits, and how long one that runs will still take."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import operator
from collections.abc import Iterable
from typing import Protocol

from sqlalchemy import ColumnElement, Select, bindparam, func, select, tuple_
from sqlalchemy.orm import Session

from store.db.tables import Job
from store.jobs.vocabulary import JobState


class Queued(Protocol):
    """What the place of a job in the queue depends on: of a row, or of a head."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> JobState: ...
    @property
    def priority(self) -> int: ...
    @property
    def created_at(self) -> dt.datetime: ...


class Timed(Protocol):
    """What the time left of a job depends on."""

    @property
    def state(self) -> str: ...
    @property
    def seconds_left(self) -> float | None: ...
    @property
    def progress_at(self) -> dt.datetime | None: ...


def is_timed(job: Timed) -> bool:
    """Whether there is an estimate of the time left: the job runs and its trainer has made one."""
    running = job.state in (JobState.RUNNING, JobState.PAUSING)
    return running and job.seconds_left is not None and job.progress_at is not None


def time_left(job: Timed, now: dt.datetime) -> float | None:
    """The trainer's last estimate less the seconds since, at the database's time ``now``; None where there is none."""
    if not is_timed(job):
        return None
    assert job.seconds_left is not None and job.progress_at is not None
    return max(0.0, job.seconds_left - (now - job.progress_at).total_seconds())


def position(session: Session, job: Queued) -> int | None:
    """1 for the head of the queue; None where the job is not queued."""
    if job.state is not JobState.QUEUED:
        return None
    place = {"priority": job.priority, "created_at": job.created_at, "id": job.id}
    return 1 + (session.scalar(_AHEAD, place) or 0)


def positions(session: Session, jobs: Iterable[Queued]) -> dict[str, int]:
    """The places of those that are queued, by their ids, in one statement that passes over the queue once.

    It counts what stands ahead of the first of them, then what stands between each and the next: ranges of the
    queue's index that do not overlap.
    """
    queued = sorted((job for job in jobs if job.state is JobState.QUEUED), key=_place)
    if not queued:
        return {}
    pairs = itertools.pairwise([None, *queued])
    between = session.execute(select(*(_count_between(first, second) for first, second in pairs))).one()
    return {job.id: 1 + ahead for job, ahead in zip(queued, itertools.accumulate(between), strict=True)}


def _ahead() -> Select[int]:
    """How many queued jobs stand ahead of one, by two ranges of the queue's index."""
    older = tuple_(Job.created_at, Job.id) < tuple_(
        bindparam("created_at", type_=Job.created_at.type), bindparam("id", type_=Job.id.type)
    )
    ranges = ((Job.priority > bindparam("priority"),), (Job.priority == bindparam("priority"), older))
    counts = [
        select(func.count()).select_from(Job).where(Job.state == JobState.QUEUED, *range).scalar_subquery()
        for range in ranges
    ]
    return select(counts[0] + counts[1])


# Made once: it is asked for each new job, and putting it together takes longer than running it on a short queue.
_AHEAD = _ahead()


def _place(job: Queued) -> tuple[int, dt.datetime, str]:
    return (-job.priority, job.created_at, job.id)


def _count_between(first: Queued | None, second: Queued | None) -> ColumnElement[int]:
    """How many queued jobs stand from ``first`` (the head of the queue for None) on and ahead of ``second``."""
    assert second is not None
    age = tuple_(Job.created_at, Job.id)
    mine = Job.priority == second.priority
    younger = age < (second.created_at, second.id)
    if first is None:
        ranges = [(Job.priority > second.priority,), (mine, younger)]
    elif first.priority == second.priority:
        ranges = [(mine, age >= (first.created_at, first.id), younger)]
    else:
        ranges = [
            (Job.priority == first.priority, age >= (first.created_at, first.id)),
            (Job.priority < first.priority, Job.priority > second.priority),
            (mine, younger),
        ]
    counts = [
        select(func.count()).select_from(Job).where(Job.state == JobState.QUEUED, *range).scalar_subquery()
        for range in ranges
    ]
    total: ColumnElement[int] = functools.reduce(operator.add, counts)
    return total
