"""A job goes to a worker that has the devices it needs, and waits where none has them."""

from __future__ import annotations

from typing import Any

import pytest

from store.db.database import Database
from store.jobs.leases import Claim, claim
from store.jobs.placement import Devices
from store.jobs.repository import JobRepository
from store.workers import WorkerRepository
from tests.store import scenes

GIB = 1 << 30


def worker(database: Database, *memory: int, slots: int = 1) -> str:
    devices = {"cpus": 4, "gpus": [{"index": str(n), "memory": size * GIB} for n, size in enumerate(memory)]}
    with database.write() as session:
        workers = WorkerRepository(session)
        return workers.register(host="h", pid=1, heartbeat_seconds=5, slots=slots, devices=devices).id


def job(database: Database, **resources: Any) -> str:
    return scenes.make_job(database, resources=resources)


def take(database: Database, worker_id: str, **options: Any) -> Claim | None:
    with database.write() as session:
        return claim(session, worker_id, "h", 1, 30.0, **options)


def taken(database: Database, worker_id: str) -> str | None:
    claimed = take(database, worker_id)
    return None if claimed is None else claimed.job_id


def test_a_job_for_two_is_left_for_the_worker_with_two(database: Database) -> None:
    one, two = worker(database, 80), worker(database, 80, 80)
    large = job(database, gpus=2)
    small = job(database, gpus=1)
    assert taken(database, one) == small, "the next that it can run"
    assert taken(database, one) is None
    with database.read() as session:
        assert JobRepository(session).queue_position(scenes.row(database, large)) == 1
    assert taken(database, two) == large


def test_no_claim_by_name_either(database: Database) -> None:
    one = worker(database, 80)
    large = job(database, gpus=2)
    assert take(database, one, job_id=large) is None


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_without_accelerators_ranks_share_the_cpu(database: Database, gpus: int) -> None:
    name = job(database, gpus=gpus)
    assert taken(database, worker(database)) == name


def test_memory_is_asked_of_as_many_as_the_job_needs(database: Database) -> None:
    small, mixed = worker(database, 16, 16), worker(database, 16, 40, 80)
    everywhere = job(database, gpus=2, gpu_memory_gib=16)
    large = job(database, gpus=2, gpu_memory_gib=40)
    larger = job(database, gpus=2, gpu_memory_gib=41)
    assert taken(database, worker(database)) is None, "who names an accelerator's memory wants accelerators"
    assert taken(database, small) == everywhere
    assert taken(database, small) is None
    assert taken(database, mixed) == large
    assert taken(database, mixed) is None
    assert scenes.row(database, larger).attempt == 0


def test_a_slot_has_its_share_of_the_worker(database: Database) -> None:
    shared = worker(database, 80, 80, 80, slots=2)
    name = job(database, gpus=2)
    assert taken(database, shared) is None
    claimed = take(database, shared, devices=Devices((80 * GIB, 80 * GIB)))
    assert claimed is not None and claimed.job_id == name, "the slot that has two says so"


def test_sql_says_the_same_as_python(database: Database) -> None:
    needs = [(gpus, memory) for gpus in (1, 2, 3) for memory in (None, 10, 20)]
    for gpus, memory in needs:
        job(database, gpus=gpus, gpu_memory_gib=memory)
    for devices in (Devices(), Devices((20 * GIB,)), Devices((20 * GIB, 10 * GIB)), Devices((10 * GIB,) * 3)):
        runs = [need for need in needs if devices.can_run(need[0], need[1] and need[1] * GIB)]
        with database.write() as session:
            claims = 0
            while claim(session, "wrk_a", "h", 1, 30.0, devices=devices) is not None:
                claims += 1
            session.rollback()
        assert claims == len(runs)
