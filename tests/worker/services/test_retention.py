"""What was deleted or has expired goes from the disk and the database."""

from __future__ import annotations

import pytest

from store.db.ids import new_id
from store.db.tables import File, Job
from store.files import FileRepository
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.repository import JobRepository
from tests.fixtures.play import OWNER, Service
from worker.services.retention import Retention


@pytest.fixture
def retention(service: Service) -> Retention:
    return Retention(service.database, service.settings)


def test_a_deleted_job_goes_with_its_folder(service: Service, retention: Retention) -> None:
    job_id = service.submit(steps="2")
    service.run()
    assert (service.settings.runs.root / job_id).exists()
    service.do(job_id, "request_delete")
    retention.run_once()
    assert not (service.settings.runs.root / job_id).exists()
    with service.database.read() as session:
        assert session.get(Job, job_id) is None
    retention.run_once()


def test_what_cannot_be_removed_keeps_nothing_else_from_it(service: Service, retention: Retention) -> None:
    ids = [new_id("file") for _ in range(2)]
    with service.database.write() as session:
        for id in ids:
            files = FileRepository(session)
            file = files.create(id=id, owner_id=OWNER, filename="f", purpose="x", bytes=1, sha256="0")
            files.request_delete(file)
    (service.settings.files_dir / ids[0]).mkdir(parents=True)  # no file: it cannot be unlinked
    for _ in range(2):
        retention.run_once()
    with service.database.read() as session:
        assert [session.get(File, id) is None for id in ids] == [False, True]


def test_a_large_removal_is_left_to_a_later_pass(service: Service) -> None:
    settings = service.settings.model_copy(update={"sweep_seconds": 1e-6})
    retention = Retention(service.database, settings)
    jobs = [service.submit(steps="1") for _ in range(3)]
    for _ in jobs:
        service.run()
    for job_id in jobs:
        service.do(job_id, "request_delete")
    left = []
    for _ in range(4):
        retention.run_once()
        left.append(sum((service.settings.runs.root / job_id).exists() for job_id in jobs))
    assert left == [2, 1, 0, 0]


def test_an_expired_checkpoint_goes_with_its_folder(service: Service, retention: Retention) -> None:
    job_id = service.submit(steps="4")
    service.run()
    with service.database.write() as session:
        repository = JobRepository(session)
        job = repository.get(OWNER, job_id)
        oldest = CheckpointRepository(session).list(job, order="asc").items[0]
        CheckpointRepository(session).set_expires_at(oldest, service.database.now(session))
    folder = service.settings.runs.attempt(job_id, 1).path / oldest.path
    assert folder.exists()
    retention.run_once()
    assert not folder.exists()
    assert (service.settings.runs.attempt(job_id, 1).path / "student").exists()
