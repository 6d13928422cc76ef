"""The sweeper: recovery, deletion and orphans, each of which may happen twice."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from store.broker import make_celery
from store.db.ids import new_id
from store.db.tables import File, Job
from store.files import FileRepository
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.leases import claim
from store.jobs.repository import JobRepository
from store.jobs.vocabulary import JobState
from store.workers import WorkerRepository
from tests.fixtures.play import OWNER, Service
from tests.fixtures.process import wait_until
from worker.process.group import ProcessGroup
from worker.process.guardian import boot_time
from worker.process.identity import attempt_processes
from worker.services.sweeper import Sweeper


@pytest.fixture
def sweeper(service: Service) -> Sweeper:
    return Sweeper(service.database, service.settings, make_celery(service.settings))


def _expire_lease(service: Service, job_id: str) -> None:
    with service.database.write() as session:
        session.get_one(Job, job_id).lease_expires_at = service.database.now(session)


def _away() -> None:
    raise OperationalError("", {}, Exception("the database is away"))


def _refuses() -> None:
    raise IntegrityError("", {}, Exception("a row is there twice"))


class TestRecovery:
    def test_an_expired_lease_requeues_and_keeps_the_log(self, service: Service, sweeper: Sweeper) -> None:
        job_id = service.submit()
        with service.database.write() as session:
            assert claim(session, "wrk_tests", "tests", os.getpid(), 30.0)
        run_dir = service.settings.runs.attempt(job_id, 1).path
        run_dir.mkdir(parents=True)
        (run_dir / "stderr.log").write_text("the last words\n")
        assert sweeper.sweep_once() is not None
        assert service.state(job_id) is JobState.STARTING
        _expire_lease(service, job_id)
        assert sweeper.sweep_once() is not None
        assert service.state(job_id) is JobState.QUEUED
        assert "the last words" in service.attempts(job_id)[0].log_tail

    def test_after_an_outage_of_the_database_holders_get_time_to_renew(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = service.settings.model_copy(update={"lease_seconds": 0.5})
        sweeper = Sweeper(service.database, settings, make_celery(settings))
        job_id = service.submit()
        with service.database.write() as session:
            assert claim(session, "wrk_tests", "tests", os.getpid(), 30.0)
        _expire_lease(service, job_id)
        with monkeypatch.context() as outage:
            outage.setattr(service.database, "write", _away)
            assert sweeper.sweep_once() is None
        assert sweeper.sweep_once() is not None
        assert service.state(job_id) is JobState.STARTING
        wait_until(lambda: sweeper.sweep_once() and service.state(job_id) is JobState.QUEUED)

    def test_a_slip_is_no_outage(self, service: Service, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch) -> None:
        """A statement that the database refuses says nothing of the holders: they could renew all the time."""
        job_id = service.submit()
        with service.database.write() as session:
            assert claim(session, "wrk_tests", "tests", os.getpid(), 30.0)
        _expire_lease(service, job_id)
        with monkeypatch.context() as slip:
            slip.setattr(service.database, "write", _refuses)
            assert sweeper.sweep_once() is None
        assert sweeper.sweep_once() is not None
        assert service.state(job_id) is JobState.QUEUED


class TestWakes:
    def test_a_broker_that_does_not_take_one_is_not_asked_again_in_the_same_pass(
        self, service: Service, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that hangs costs seconds each time, in which no lease would be recovered."""
        asked: list[str] = []
        monkeypatch.setattr("worker.services.sweeper.wake", lambda _, job_id, gpus: asked.append(job_id))
        with service.database.write() as session:
            for number in range(3):
                WorkerRepository(session).register(host="h", pid=number, heartbeat_seconds=5.0)
        for _ in range(3):
            service.submit()
        done = sweeper.sweep_once()
        assert done is not None and len(done.wake) == 3
        assert len(asked) == 1


class TestOrphans:
    def test_of_a_dead_attempt_are_ended_and_of_a_living_one_not(
        self, service: Service, sweeper: Sweeper, tmp_path: Path
    ) -> None:
        job_id = service.submit()
        with service.database.write() as session:
            claimed = claim(session, "wrk_tests", "tests", os.getpid(), 30.0)
        assert claimed is not None
        sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
        group = ProcessGroup.start(sleeper, run_dir=tmp_path, attempt_id=claimed.attempt_id, deadline=boot_time() + 60)
        try:
            wait_until(lambda: len(attempt_processes([claimed.attempt_id]).get(claimed.attempt_id, [])) == 2)
            assert sweeper.end_orphans() == []
            _expire_lease(service, job_id)
            assert sweeper.sweep_once() is not None
            assert group.wait(5) is not None
            # A process that was sent SIGKILL dies when it next gets the processor.
            wait_until(lambda: attempt_processes([claimed.attempt_id]) == {}, 5.0)
        finally:
            assert group.kill() == []


class TestDeletion:
    def test_a_deleted_job_goes_with_its_folder(self, service: Service, sweeper: Sweeper) -> None:
        job_id = service.submit(steps="2")
        service.run()
        assert (service.settings.runs.root / job_id).exists()
        service.do(job_id, "request_delete")
        assert sweeper.sweep_once() is not None
        assert not (service.settings.runs.root / job_id).exists()
        with service.database.read() as session:
            assert session.get(Job, job_id) is None
        assert sweeper.sweep_once() is not None

    def test_what_cannot_be_removed_keeps_nothing_else_from_it(
        self, service: Service, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = [new_id("file") for _ in range(2)]
        with service.database.write() as session:
            for id in ids:
                files = FileRepository(session)
                file = files.create(id=id, owner_id=OWNER, filename="f", purpose="x", bytes=1, sha256="0")
                files.request_delete(file)
        (service.settings.files_dir / ids[0]).mkdir(parents=True)  # no file: it cannot be unlinked
        ended: list[bool] = []
        monkeypatch.setattr(sweeper, "end_orphans", lambda: ended.append(True))
        for _ in range(2):
            assert sweeper.sweep_once() is not None
        with service.database.read() as session:
            assert [session.get(File, id) is None for id in ids] == [False, True]
        assert ended == [True, True]

    def test_a_large_removal_does_not_keep_leases_waiting(self, service: Service) -> None:
        settings = service.settings.model_copy(update={"sweep_seconds": 1e-6})
        sweeper = Sweeper(service.database, settings, make_celery(settings))
        jobs = [service.submit(steps="1") for _ in range(3)]
        for _ in jobs:
            service.run()
        for job_id in jobs:
            service.do(job_id, "request_delete")
        left = []
        for _ in range(4):
            assert sweeper.sweep_once() is not None
            left.append(sum((service.settings.runs.root / job_id).exists() for job_id in jobs))
        assert left == [2, 1, 0, 0]

    def test_an_expired_checkpoint_goes_with_its_folder(self, service: Service, sweeper: Sweeper) -> None:
        job_id = service.submit(steps="4")
        service.run()
        with service.database.write() as session:
            repository = JobRepository(session)
            job = repository.get(OWNER, job_id)
            oldest = CheckpointRepository(session).list(job, order="asc").items[0]
            CheckpointRepository(session).set_expires_at(oldest, service.database.now(session))
        folder = service.settings.runs.attempt(job_id, 1).path / oldest.path
        assert folder.exists()
        assert sweeper.sweep_once() is not None
        assert not folder.exists()
        assert (service.settings.runs.attempt(job_id, 1).path / "student").exists()
