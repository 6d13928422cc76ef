"""The sweeper: recovery, deletion and orphans, each of which may happen twice."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from store.broker import make_celery
from store.checkpoints import CheckpointRepository
from store.jobs import JobRepository
from store.leases import claim
from store.tables import Job
from store.vocabulary import JobState
from tests.worker.conftest import OWNER, Service, wait_until
from worker.guardian import boot_time
from worker.process_group import ProcessGroup, attempt_processes
from worker.sweeper import Sweeper


@pytest.fixture
def sweeper(service: Service) -> Sweeper:
    return Sweeper(service.database, service.settings, make_celery(service.settings))


def _expire_lease(service: Service, job_id: str) -> None:
    with service.database.write() as session:
        session.get_one(Job, job_id).lease_expires_at = service.database.now(session)


def _away() -> None:
    raise OperationalError("", {}, Exception("the database is away"))


class TestRecovery:
    def test_an_expired_lease_requeues_and_keeps_the_log(self, service: Service, sweeper: Sweeper) -> None:
        job_id = service.submit()
        with service.database.write() as session:
            assert claim(session, "wrk_tests", "tests", os.getpid(), 30.0)
        run_dir = service.settings.run_dir(job_id, 1)
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
            assert attempt_processes([claimed.attempt_id]) == {}
        finally:
            assert group.kill() == []


class TestDeletion:
    def test_a_deleted_job_goes_with_its_folder(self, service: Service, sweeper: Sweeper) -> None:
        job_id = service.submit(steps="2")
        service.run()
        assert (service.settings.runs_dir / job_id).exists()
        service.do(job_id, "request_delete")
        assert sweeper.sweep_once() is not None
        assert not (service.settings.runs_dir / job_id).exists()
        with service.database.read() as session:
            assert session.get(Job, job_id) is None
        assert sweeper.sweep_once() is not None

    def test_an_expired_checkpoint_goes_with_its_folder(self, service: Service, sweeper: Sweeper) -> None:
        job_id = service.submit(steps="4")
        service.run()
        with service.database.write() as session:
            repository = JobRepository(session)
            job = repository.get(OWNER, job_id)
            oldest = CheckpointRepository(session).list(job, order="asc").items[0]
            CheckpointRepository(session).set_expires_at(oldest, service.database.now(session))
        folder = service.settings.run_dir(job_id, 1) / oldest.path
        assert folder.exists()
        assert sweeper.sweep_once() is not None
        assert not folder.exists()
        assert (service.settings.run_dir(job_id, 1) / "student").exists()
