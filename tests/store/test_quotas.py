"""How many of one owner's jobs run at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from store.db.database import Database
from store.jobs.leases import claim
from tests.store.scenes import make_job


def test_who_has_enough_running_waits_and_others_go_first(database: Database) -> None:
    greedy = [make_job(database, owner="greedy") for _ in range(3)]
    modest = make_job(database, owner="modest")
    taken = []
    for _ in range(4):
        with database.write() as session:
            found = claim(session, "wrk_x", "host", 1, 30.0, running_per_owner=2)
            taken.append(found.job_id if found is not None else None)
    assert taken == [greedy[0], greedy[1], modest, None]


def test_claims_at_the_same_time_take_no_more(database: Database) -> None:
    jobs = [make_job(database, owner="greedy") for _ in range(8)]

    def take(number: int) -> str | None:
        with database.write() as session:
            found = claim(session, f"wrk_{number}", "host", 1, 30.0, running_per_owner=2)
            return found.job_id if found is not None else None

    with ThreadPoolExecutor(8) as threads:
        taken = [found for found in threads.map(take, range(8)) if found is not None]
    assert len(taken) == 2 and set(taken) < set(jobs)
