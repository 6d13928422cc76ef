"""Lost jobs are taken from their holders, unless nobody could have renewed."""

from __future__ import annotations

import os

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from store.db.tables import Job
from store.jobs.leases import claim
from store.jobs.vocabulary import JobState
from tests.fixtures.play import Service
from tests.fixtures.process import wait_until
from worker.services.recover import Recover


@pytest.fixture
def recover(service: Service) -> Recover:
    return Recover(service.database, service.settings)


def _expire_lease(service: Service, job_id: str) -> None:
    with service.database.write() as session:
        session.get_one(Job, job_id).lease_expires_at = service.database.now(session)


def _away() -> None:
    raise OperationalError("", {}, Exception("the database is away"))


def _refuses() -> None:
    raise IntegrityError("", {}, Exception("a row is there twice"))


def test_an_expired_lease_requeues_and_keeps_the_log(service: Service, recover: Recover) -> None:
    job_id = service.submit()
    with service.database.write() as session:
        assert claim(session, "wrk_tests", "tests", os.getpid(), 30.0)
    run_dir = service.settings.runs.attempt(job_id, 1).path
    run_dir.mkdir(parents=True)
    (run_dir / "stderr.log").write_text("the last words\n")
    recover.run_once()
    assert service.state(job_id) is JobState.STARTING
    _expire_lease(service, job_id)
    recover.run_once()
    assert service.state(job_id) is JobState.QUEUED
    assert "the last words" in service.attempts(job_id)[0].log_tail


def test_after_an_outage_of_the_database_holders_get_time_to_renew(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = service.settings.model_copy(update={"lease_seconds": 0.5})
    recover = Recover(service.database, settings)
    job_id = service.submit()
    with service.database.write() as session:
        assert claim(session, "wrk_tests", "tests", os.getpid(), 30.0)
    _expire_lease(service, job_id)
    with monkeypatch.context() as outage:
        outage.setattr(service.database, "write", _away)
        with pytest.raises(SQLAlchemyError):
            recover.run_once()
    recover.run_once()
    assert service.state(job_id) is JobState.STARTING
    wait_until(lambda: recover.run_once() and service.state(job_id) is JobState.QUEUED)


def test_a_slip_is_no_outage(service: Service, recover: Recover, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that the database refuses says nothing of the holders: they could renew all the time."""
    job_id = service.submit()
    with service.database.write() as session:
        assert claim(session, "wrk_tests", "tests", os.getpid(), 30.0)
    _expire_lease(service, job_id)
    with monkeypatch.context() as slip:
        slip.setattr(service.database, "write", _refuses)
        with pytest.raises(SQLAlchemyError):
            recover.run_once()
    recover.run_once()
    assert service.state(job_id) is JobState.QUEUED
