from __future__ import annotations

import datetime as dt

from store.db.database import Database
from store.jobs.leases import claim
from store.workers import WorkerRepository
from tests.store import scenes


def test_heartbeat_drain_stop(database: Database) -> None:
    with database.write() as session:
        workers = WorkerRepository(session)
        row = workers.register(host="h", pid=5, heartbeat_seconds=2.0, devices={"gpus": []})
        now = database.now(session)
        assert workers.is_online(row, now)
        assert not workers.is_online(row, now + dt.timedelta(seconds=7))
        assert not workers.heartbeat(row.id).draining
        workers.request_drain(row.id)
        assert workers.heartbeat(row.id).draining
        workers.undrain(row.id)
        assert not workers.heartbeat(row.id).draining
        workers.request_drain(row.id)
        workers.stop(row.id)
        assert not workers.is_online(row, now) and workers.list() == []
        assert workers.list(include_stopped=True) == [row]
        workers.forget_silent(dt.timedelta(0))
        assert workers.list(include_stopped=True) == []


def test_a_dirty_slot_gets_nothing(database: Database) -> None:
    scenes.make_job(database)
    with database.write() as session:
        workers = WorkerRepository(session)
        row = workers.register(host="h", pid=5, heartbeat_seconds=2.0)
        workers.heartbeat(row.id, slot_dirty="pid 7 holds the accelerator")
        assert claim(session, row.id, "h", 5, 30) is None
        workers.heartbeat(row.id)
        assert claim(session, row.id, "h", 5, 30) is not None
