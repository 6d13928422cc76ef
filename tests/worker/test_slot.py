"""A place in the pool: filled with whatever the database says comes next, unless something else holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from store.jobs.placement import Devices
from store.jobs.vocabulary import AttemptState, JobState
from store.workers import WorkerRepository
from tests.fixtures.fake_launcher import FakeLauncher
from tests.fixtures.play import Service
from tests.fixtures.process import in_child, wait_until
from worker.occupancy import Occupancy, SlotState
from worker.preflight import Preflight
from worker.process.group import ProcessGroup
from worker.process.identity import ProcessIdentity
from worker.slot import Slot


@pytest.fixture
def occupancy() -> Occupancy:
    return Occupancy(2)


@pytest.fixture
def make_slot(service: Service, occupancy: Occupancy) -> Iterator[Callable[[], Slot]]:
    def make() -> Slot:
        with service.database.write() as session:
            worker_id = WorkerRepository(session).register(host="h", pid=1, heartbeat_seconds=5.0).id
        return Slot(
            index=1,
            worker_id=worker_id,
            devices=Devices(),
            settings=service.settings,
            launcher=FakeLauncher(),
            preflight=Preflight(runs_dir=service.settings.runs.root, min_free_bytes=0, probe=lambda: []),
            occupancy=occupancy,
        )

    yield make


def test_says_what_it_does_and_how_that_ended(
    service: Service, make_slot: Callable[[], Slot], occupancy: Occupancy
) -> None:
    slot = make_slot()
    assert slot.run_next() is None
    job_id = service.submit(steps="20", delay="0.05")
    ended: list[object] = []
    thread = threading.Thread(target=lambda: ended.append(slot.run_next()))
    thread.start()
    wait_until(lambda: occupancy.read(1).job_id)
    assert occupancy.all() == [SlotState(), SlotState(pid=os.getpid(), busy=True, job_id=job_id, attempt=1)]
    thread.join(30)
    assert ended == [{"job": job_id, "attempt": 1, "state": "succeeded"}]
    assert occupancy.read(1) == SlotState(pid=os.getpid())


def test_takes_no_job_while_a_dead_one_still_holds_its_place(
    service: Service, make_slot: Callable[[], Slot], occupancy: Occupancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asleep in a driver, deaf to SIGKILL: nothing here can be, so another process stands for it."""
    undying = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    kill = ProcessGroup.kill

    def kill_but_one(group: ProcessGroup) -> list[ProcessIdentity]:
        return [*kill(group), ProcessIdentity.of(undying.pid)]

    first, second = service.submit(steps="1"), service.submit(steps="1")
    slot = make_slot()
    try:
        with monkeypatch.context() as stuck:
            stuck.setattr(ProcessGroup, "kill", kill_but_one)
            assert slot.run_next() == {"job": first, "attempt": 1, "state": "succeeded"}
        refused = slot.run_next()
        assert refused is not None and str(undying.pid) in refused["refused"]
        assert occupancy.read(1).problem == refused["refused"]
        assert service.state(second) is JobState.QUEUED
    finally:
        undying.kill()
        undying.wait()
    assert slot.run_next() == {"job": second, "attempt": 1, "state": "succeeded"}
    assert occupancy.read(1).problem is None


class TestDrain:
    def test_a_worker_that_drains_gets_its_job_back_at_once_and_takes_no_other(
        self, service: Service, make_slot: Callable[[], Slot], occupancy: Occupancy
    ) -> None:
        job_id = service.submit(steps="1000", delay="0.05")
        slot = make_slot()
        thread = threading.Thread(target=slot.run_next)
        thread.start()
        wait_until(lambda: service.steps(job_id))
        occupancy.drain()
        thread.join(30)
        assert service.state(job_id) is JobState.QUEUED
        assert slot.run_next() is None

    def test_sigterm_to_its_process_hands_back_and_then_ends_it(
        self, service: Service, make_slot: Callable[[], Slot]
    ) -> None:
        """What `revoke --terminate` does to a task costs no more than a deploy."""
        job_id = service.submit(steps="1000", delay="0.05")

        def pool_process() -> None:
            slot = make_slot()
            threading.Thread(target=terminate_once_it_trains, daemon=True).start()
            with slot.handing_back_on_sigterm():
                ended = slot.run_next()
            raise AssertionError(f"this is never reached: {ended}")

        def terminate_once_it_trains() -> None:
            wait_until(lambda: service.steps(job_id))
            os.kill(os.getpid(), signal.SIGTERM)

        assert in_child(pool_process) == -signal.SIGTERM
        (attempt,) = service.attempts(job_id)
        assert (attempt.state, service.job(job_id).retries) == (AttemptState.STOPPED, 0)


class TestOccupancy:
    def test_is_seen_by_another_process(self, occupancy: Occupancy) -> None:
        state = SlotState(pid=7, job_id="job_x", attempt=3, problem="\u00e9" * 1000)

        def write() -> None:
            occupancy.write(0, state)
            occupancy.drain()  # rings

        assert in_child(write) == 0
        assert occupancy.wait(5.0) and not occupancy.wait(0.0)
        seen = occupancy.read(0)
        assert (seen.pid, seen.job_id, seen.attempt) == (7, "job_x", 3)
        assert seen.problem is not None and seen.problem.startswith("\u00e9")
        assert occupancy.draining and occupancy.read(1) == SlotState()
