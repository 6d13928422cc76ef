"""The one slot: what an attempt left alive keeps it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from store.db.tables import Worker
from store.jobs.vocabulary import JobState
from store.workers import WorkerRepository
from tests.worker.conftest import Service
from tests.worker.fake_launcher import FakeLauncher
from worker.claiming import ClaimLoop
from worker.doorbell import Doorbell
from worker.process.group import ProcessGroup
from worker.process.identity import ProcessIdentity
from worker.slot import Slot


def test_takes_no_job_while_a_dead_one_still_holds_its_place(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asleep in a driver, deaf to SIGKILL: nothing here can be, so another process stands for it."""
    with service.database.write() as session:
        worker = WorkerRepository(session).register(host="h", pid=1, heartbeat_seconds=5.0).id
    undying = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    kill = ProcessGroup.kill

    def kill_but_one(group: ProcessGroup) -> list[ProcessIdentity]:
        return [*kill(group), ProcessIdentity.of(undying.pid)]

    first, second = service.submit(steps="1"), service.submit(steps="1")
    with Doorbell() as doorbell:
        loop = ClaimLoop(
            database=service.database,
            settings=service.settings,
            launcher=FakeLauncher(),
            doorbell=doorbell,
            slot=Slot(runs_dir=service.settings.runs_dir, min_free_bytes=0, probe=lambda: []),
            worker_id=worker,
            drain=threading.Event(),
            between=lambda: None,
        )
        try:
            with monkeypatch.context() as stuck:
                stuck.setattr(ProcessGroup, "kill", kill_but_one)
                assert loop._take_one()
            assert service.state(first) is JobState.SUCCEEDED
            assert not loop._take_one()
            assert str(undying.pid) in str(_dirty(service, worker))
            assert service.state(second) is JobState.QUEUED
        finally:
            undying.kill()
            undying.wait()
        assert loop._take_one()
    assert service.state(second) is JobState.SUCCEEDED
    assert _dirty(service, worker) is None


def _dirty(service: Service, worker: str) -> str | None:
    with service.database.read() as session:
        return session.get_one(Worker, worker).slot_dirty
