"""Rows that no release of today would write: claims and sweeps fail the job at fault and go on to the next."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import text

from store.db.database import Database
from store.jobs.leases import claim
from store.jobs.repository import JobRepository
from store.jobs.vocabulary import AttemptState, JobState
from tests.fixtures.sweep import sweep
from tests.store.scenes import OWNER, attempts, make_job, row, take

FAR = 2**63 - 1
ODD: dict[str, dict[str, Any]] = {
    "no clock reaches its end": {"max_runtime_seconds": 10**12},
    "no timedelta holds its time": {"max_runtime_seconds": FAR},
    "no attempt comes after it": {"attempt": FAR},
    "no fence comes after it": {"fence": FAR - 1, "attempt": FAR},
    "a word of another release": {"keep": "everything", "max_runtime_seconds": FAR},
    "a spec that is none": {"spec": "{", "max_runtime_seconds": FAR},
    "measurements that are none": {"metrics": '"fast"', "max_runtime_seconds": FAR},
}


def put(database: Database, job_id: str, **columns: Any) -> None:
    """Write into the row what no repository would."""
    changes = ", ".join(f"{name} = :{name}" for name in columns)
    with database.write() as session:
        session.execute(text(f"UPDATE jobs SET {changes} WHERE id = :id"), {**columns, "id": job_id})


def one_or_none(database: Database) -> str | None:
    with database.write() as session:
        taken = claim(session, "wrk_a", "host", 1, 30.0)
    return taken.job_id if taken is not None else None


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_claim_fails_the_job_and_takes_the_next(database: Database, odd: dict[str, Any]) -> None:
    bad, good = make_job(database), make_job(database)
    put(database, bad, **odd)
    assert one_or_none(database) == good
    failed = row(database, bad)
    assert failed.state is JobState.FAILED
    assert failed.failure is not None
    assert (failed.failure["code"], failed.failure["category"]) == ("job_unreadable", "system")
    assert failed.finished_at is not None and failed.lease_owner is None
    assert one_or_none(database) is None


def test_many_of_them_in_one_claim(database: Database) -> None:
    for _ in range(5):
        put(database, make_job(database), max_runtime_seconds=FAR)
    good = make_job(database)
    assert one_or_none(database) == good


def test_one_that_cannot_even_be_failed_stops_nobody(database: Database) -> None:
    bad, good = make_job(database), make_job(database)
    put(database, bad, max_runtime_seconds=FAR, event_seq=FAR)
    assert one_or_none(database) == good
    assert row(database, bad).state is JobState.QUEUED


def held_without_worker(database: Database, **odd: Any) -> str:
    job_id = make_job(database)
    take(database, job_id)
    put(database, job_id, lease_expires_at="2001-01-01 00:00:00", **odd)
    return job_id


@pytest.mark.parametrize("odd", [{"fence": FAR}, {"retries": FAR}, {"stalled": FAR}, {"attempt": 7}], ids=str)
def test_a_sweep_fails_the_job_and_goes_on(database: Database, odd: dict[str, int]) -> None:
    bad, good = held_without_worker(database, **odd), held_without_worker(database)
    sweep(database)
    assert row(database, good).state is JobState.QUEUED
    if "fence" in odd:
        assert row(database, bad).state is JobState.STARTING  # nobody but an operator can help a fence at its end
        return
    assert row(database, bad).state is JobState.FAILED
    assert [attempt.state for attempt in attempts(database, bad)] == [AttemptState.LOST]


def test_a_sweep_over_every_odd_row(database: Database) -> None:
    for odd in ODD.values():
        put(database, make_job(database), deadline_at="2001-01-01 00:00:00", **odd)
    paused = make_job(database)
    with database.write() as session:
        JobRepository(session).request_pause(JobRepository(session).get(OWNER, paused))
    put(database, paused, deadline_at="2001-01-01 00:00:00", keep="everything")
    good = held_without_worker(database)
    sweep(database)
    assert row(database, good).state is JobState.QUEUED
    assert row(database, paused).state is JobState.EXPIRED


def test_a_deadline_at_the_end_of_time(database: Database) -> None:
    job_id = make_job(database)
    put(database, job_id, deadline_at=dt.datetime(9999, 12, 31, 23, 59, 59).isoformat(sep=" "))
    assert one_or_none(database) == job_id
