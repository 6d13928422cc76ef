"""Attempts whose worker dies, sleeps or loses its database at a bad moment (faults 7, 9, 10, 12, 19, 20, 30 and 31)."""

from __future__ import annotations

import ast
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import select

import store
import worker
from store.bytes.runs import Runs
from store.db.tables import Attempt, Checkpoint, Job, MetricPoint
from store.jobs.vocabulary import AttemptState, JobState
from tests.faults.conftest import DYING
from tests.fixtures.play import SHORT_LEASE, WORKER, Service
from tests.fixtures.process import die_at_commit, in_child, wait_until
from tests.fixtures.sweep import sweep_with
from tests.store.scenes import artifact
from worker.attempt.manifests import verify
from worker.process.identity import attempt_processes

Start = Callable[..., "subprocess.Popen[bytes]"]


def expire_and_sweep(service: Service, job_id: str) -> None:
    """Let the job's lease be over, if it has one, and sweep."""
    with service.database.write() as session:
        job = session.get_one(Job, job_id)
        if job.lease_expires_at is not None:
            job.lease_expires_at = service.database.now(session)
    sweep_with(service.database, service.settings)


def test_a_zombie_that_wakes_up_changes_nothing(service: Service, start: Start) -> None:
    job_id = service.submit(steps="30", delay="0.1")
    first = start(WORKER)
    wait_until(lambda: service.steps(job_id) >= 2, 60)
    (attempt,) = service.attempts(job_id)
    # Asleep to the last process, so that not even its guardian can end the trainer in time.
    trainer = [process.pid for process in attempt_processes([attempt.id])[attempt.id]]
    asleep = [first.pid, attempt.supervisor_pid, *trainer]
    # SQLite has one writer. While it is this test, nobody falls asleep who would keep all others from writing.
    with service.database.write() as session:
        service.database.now(session)  # the transaction begins
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
    expire_and_sweep(service, job_id)
    start(WORKER)
    wait_until(lambda: service.state(job_id) is JobState.SUCCEEDED, 60)
    done = service.job(job_id)
    before = service.attempts(job_id)
    for pid in asleep:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not attempt_processes([attempt.id]), 20)
    after = service.job(job_id)
    assert after.version == done.version
    student = artifact(service.database, job_id)
    assert student is not None and (student.attempt, student.path) == (2, "student")
    folder = Runs(service.settings.data_dir).attempt(job_id, 2).inside(student.path)
    verify(folder, kind="student", manifest_sha256=student.manifest_sha256)
    zombie, winner = service.attempts(job_id)
    assert (zombie.state, winner.state) == (AttemptState.LOST, AttemptState.SUCCEEDED)
    assert (zombie.recorded_seq, zombie.ended_at) == (before[0].recorded_seq, before[0].ended_at)


def test_a_death_between_claim_and_first_heartbeat_is_found(service: Service, start: Start) -> None:
    job_id = service.submit(steps="2")
    worker = start(DYING, "worker.slot:Supervisor:before", "worker", MINILLM_LEASE_SECONDS=str(SHORT_LEASE))
    wait_until(lambda: any(not psutil.pid_exists(row.supervisor_pid) for row in service.attempts(job_id)), 60)
    worker.kill()
    job = service.job(job_id)
    assert job.state is JobState.STARTING and job.lease_expires_at is not None
    assert sweep_with(service.database, service.settings, recover_leases=False).requeued == []

    def swept() -> bool:
        return sweep_with(service.database, service.settings).requeued == [job_id]

    wait_until(swept)
    service.run()
    assert service.state(job_id) is JobState.SUCCEEDED


@contextmanager
def locked(service: Service) -> Iterator[None]:
    """The database lets nobody write to the jobs while the block runs."""
    if service.database.dialect == "sqlite":
        connection = sqlite3.connect(str(service.database.url.database), isolation_level=None, timeout=20)
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
        connection.close()
    else:
        url = service.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            yield
            other.rollback()


class TestOutage:
    LEASE = 5.0

    def test_shorter_than_the_lease_is_not_even_noticed(self, service: Service) -> None:
        job_id = service.submit(steps="60", delay="0.05")
        thread = service.run_aside(lease_seconds=self.LEASE, heartbeat_seconds=0.3)
        wait_until(lambda: service.steps(job_id), 30)
        with locked(service):
            threading.Event().wait(2.0)
        thread.join(60)
        assert service.state(job_id) is JobState.SUCCEEDED
        assert len(service.attempts(job_id)) == 1

    def test_longer_than_the_lease_ends_the_trainer_and_nothing_else(self, service: Service) -> None:
        job_id = service.submit(steps="1000", delay="0.05")
        thread = service.run_aside(lease_seconds=self.LEASE, heartbeat_seconds=0.3)
        wait_until(lambda: service.steps(job_id), 30)
        (attempt,) = service.attempts(job_id)
        with locked(service):
            began = time.monotonic()
            # Dead before anybody else could have had the lease, although nobody can say so yet.
            wait_until(lambda: not attempt_processes([attempt.id]), 20)
            assert time.monotonic() - began < self.LEASE
            threading.Event().wait(1.0)
        thread.join(60)
        job = service.job(job_id)
        assert job.failure is not None
        assert (job.state, job.failure["code"], job.retries) == (JobState.QUEUED, "worker_lost", 1)


def test_a_deploy_is_resumed_by_another_worker_from_that_step(service: Service, start: Start) -> None:
    job_id = service.submit(steps="60", delay="0.1")
    first = start(WORKER)
    wait_until(lambda: service.steps(job_id) >= 3, 60)
    asked = time.monotonic()
    first.terminate()
    assert first.wait(30) == 0
    assert time.monotonic() - asked < service.settings.stop_grace_seconds + 10
    with service.database.read() as session:
        saved = session.scalars(select(Checkpoint.step).order_by(Checkpoint.step.desc())).first()
        assert saved == session.scalars(select(MetricPoint.step).order_by(MetricPoint.step.desc())).first()
    start(WORKER)
    wait_until(lambda: service.state(job_id) is JobState.SUCCEEDED, 60)
    one, two = service.attempts(job_id)
    assert one.worker_id != two.worker_id
    with service.database.read() as session:
        steps = session.scalars(select(MetricPoint.step).where(MetricPoint.attempt == 2).order_by(MetricPoint.step))
        assert steps.first() == saved + 1
    assert service.job(job_id).retries == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_sudden_death_around_every_commit(service: Service, when: str) -> None:
    """A commit whose outcome nobody learned is neither lost nor done twice."""
    completed = False
    for number in range(1, 30):
        job_id = service.submit(steps="2", delay="0")

        def attempt(number: int = number) -> None:
            die_at_commit(number, when)
            service.run()

        status = in_child(attempt)
        assert status in (0, -signal.SIGKILL)
        wait_until(lambda: service.processes(job_id) == 0, 10)  # noqa: B023
        state = service.state(job_id)
        if state is not JobState.SUCCEEDED:
            expire_and_sweep(service, job_id)
            assert service.state(job_id) is JobState.QUEUED
            service.run()
        assert service.state(job_id) is JobState.SUCCEEDED
        done = [row.number for row in service.attempts(job_id) if row.state is AttemptState.SUCCEEDED]
        assert done == [service.job(job_id).attempt]
        if status == 0:
            completed = True
            break
    assert completed and number >= 4, "claim, process, events and end are commits of their own"


def test_output_that_nobody_reads_holds_no_trainer_up(service: Service) -> None:
    job_id = service.submit(mode="chatty", steps="8", delay="0")
    service.run()
    assert service.state(job_id) is JobState.SUCCEEDED
    log = service.settings.runs.attempt(job_id, 1).path / "stdout.log"
    assert log.stat().st_size > 8 << 20


class TestClock:
    """Times are the database's. A worker whose clock is wrong neither loses nor steals a lease."""

    def test_no_module_of_store_and_worker_reads_the_wall_clock(self) -> None:
        reads = []
        for room in (store, worker):
            for path in sorted(Path(str(room.__file__)).parent.glob("*.py")):
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                        owner = ast.unparse(node.value)
                        if (owner, node.attr) in {
                            ("time", "time"),
                            ("dt.datetime", "now"),
                            ("datetime", "now"),
                            ("dt.datetime", "utcnow"),
                        }:
                            reads.append(f"{path.name}:{node.lineno}")
        # Ids sort by time and are compared with nothing.
        assert [place for place in reads if not place.startswith("ids.py")] == []

    def test_a_worker_in_another_century_keeps_its_lease(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = service.submit(steps="30", delay="0.05")
        thread = service.run_aside()
        wait_until(lambda: service.steps(job_id), 30)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        thread.join(60)
        assert service.state(job_id) is JobState.SUCCEEDED
        with service.database.read() as session:
            (attempt,) = session.scalars(select(Attempt))
            assert attempt.ended_at is not None and attempt.ended_at > attempt.started_at
