from __future__ import annotations

import datetime as dt
import functools

import pytest

from store.db.database import Database
from store.db.errors import NotFound
from store.jobs.leases import claim, waiting
from store.jobs.placement import Devices
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
        workers.heartbeat(row.id, problems=["pid 7 holds the accelerator"])
        assert claim(session, row.id, "h", 5, 30) is None
        workers.heartbeat(row.id)
        assert claim(session, row.id, "h", 5, 30) is not None


def test_each_slot_counts(database: Database) -> None:
    """Two slots are two jobs at once; one that is dirty takes nothing from the other."""
    devices = {"slots": [{"gpus": ["0"], "dirty": None}, {"gpus": ["1"], "dirty": None}]}
    for _ in range(3):
        scenes.make_job(database)
    with database.write() as session:
        workers = WorkerRepository(session)
        row = workers.register(host="h", pid=5, heartbeat_seconds=2.0, slots=2, devices=devices)
        assert workers.idle() == 2
        workers.heartbeat(row.id, problems=[None, "in use"])
        assert (workers.idle(), row.slot_dirty, row.devices["slots"][1]["dirty"]) == (1, None, "in use")
        assert claim(session, row.id, "h", 5, 30) is not None
        assert workers.idle() == 0
        workers.heartbeat(row.id, problems=[None, None])
        assert (workers.idle(), row.devices["slots"][1]["dirty"]) == (1, None)
        assert claim(session, row.id, "h", 5, 30) is not None
        assert workers.idle() == 0
        workers.heartbeat(row.id, problems=["full", "full"])
        assert row.slot_dirty == "full"
        assert claim(session, row.id, "h", 5, 30) is None


def test_what_waits_is_what_could_be_claimed(database: Database) -> None:
    for _ in range(3):
        scenes.make_job(database)
    with database.write() as session:
        workers = WorkerRepository(session)
        row = workers.register(host="h", pid=5, heartbeat_seconds=2.0)
        could_take = functools.partial(waiting, session, row.id, devices=[Devices()])
        assert (could_take(limit=9), could_take(limit=2)) == (3, 2)
        assert claim(session, row.id, "h", 5, 30) is not None
        assert could_take(limit=9) == 2
        workers.request_drain(row.id)
        assert could_take(limit=9) == 0
        with pytest.raises(NotFound):
            waiting(session, "wrk_unknown", devices=[Devices()], limit=1)
