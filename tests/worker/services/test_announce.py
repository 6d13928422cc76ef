"""Queued jobs are announced again."""

from __future__ import annotations

import pytest

from store.broker import make_celery
from store.workers import WorkerRepository
from tests.fixtures.play import Service
from worker.services.announce import Announce


def test_a_broker_that_does_not_take_one_is_not_asked_again_in_the_same_pass(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr("worker.services.announce.wake", lambda _, job_id, gpus: asked.append((job_id, gpus)))
    with service.database.write() as session:
        for number in range(3):
            WorkerRepository(session).register(host="h", pid=number, heartbeat_seconds=5.0)
    jobs = [service.submit(gpus=gpus) for gpus in (0, 1, 2)]
    assert Announce(service.database, service.settings, make_celery(service.settings)).run_once() == jobs
    assert asked == [(jobs[0], 0)]
