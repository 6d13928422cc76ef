"""The worker as a program: it needs no broker, hands back its job on SIGTERM, and may be killed at any moment."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest
from sqlalchemy import select, text

from store.broker import make_celery, wake
from store.db.tables import Checkpoint, Worker
from store.jobs.vocabulary import AttemptState, JobState
from tests.fixtures.play import SHORT_LEASE, WORKER, Service
from tests.fixtures.process import Start, left_by, wait_until
from tests.fixtures.sweep import sweep_with


def test_the_room_never_imports_torch() -> None:
    code = (
        "import sys, worker.__main__, worker.app, worker.services.__main__, worker.embedded.up\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_a_broker_jobs_run_and_sigterm_gives_the_running_one_back(
    service: Service, start: Start, mark: str
) -> None:
    done = service.submit(steps="2")
    worker = start(WORKER)
    wait_until(lambda: service.state(done) is JobState.SUCCEEDED, 30)
    long = service.submit(steps="1000", delay="0.05")
    wait_until(lambda: service.steps(long))
    worker.terminate()
    assert worker.wait(10) == 0
    job = service.job(long)
    assert (job.state, job.retries) == (JobState.QUEUED, 0)
    (attempt,) = service.attempts(long)
    assert (attempt.state, attempt.exit_code) == (AttemptState.STOPPED, 75)
    with service.database.read() as session:
        steps = session.scalars(select(Checkpoint.step).where(Checkpoint.job_id == long)).all()
        assert session.scalars(select(Worker)).one().stopped_at is not None
    assert max(steps) == job.furthest_fraction * 1000
    assert not left_by(mark)


def _falls_asleep(service: Service, asleep: list[psutil.Process]) -> bool:
    """Stop the worker. False, and it is awake again, where it was in a transaction: others would wait for its locks."""
    with service.database.write() as session:
        service.database.now(session)  # on SQLite nobody else writes now
        for process in asleep:
            process.suspend()
        wait_until(lambda: all(process.status() == psutil.STATUS_STOPPED for process in asleep))
    if service.database.dialect == "sqlite":
        return True
    with service.database.read() as session:
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' AND state <> 'idle'"
        )
        still = session.scalar(text(others)) == 0
    if not still:
        _wakes_up(asleep)
    return still


def _wakes_up(asleep: list[psutil.Process]) -> None:
    for process in asleep:
        process.resume()


def test_sleep_and_sudden_death_leave_no_trainer_and_no_lost_job(service: Service, start: Start, mark: str) -> None:
    job_id = service.submit(mode="stubborn", steps="1000", delay="0.05")
    worker = start(WORKER, MINILLM_LEASE_SECONDS=str(SHORT_LEASE))
    wait_until(lambda: service.steps(job_id) and service.processes(job_id) == 5, 30)

    # Asleep beyond its lease: the trainer is dead by the time that anybody else may claim the job.
    asleep = [psutil.Process(pid) for pid in (worker.pid, service.attempts(job_id)[0].supervisor_pid)]
    wait_until(lambda: _falls_asleep(service, asleep))
    wait_until(lambda: _swept(service, job_id) is JobState.QUEUED)
    assert service.processes(job_id) == 0
    (first,) = service.attempts(job_id)
    _wakes_up(asleep)

    # Awake again it writes nothing for the old attempt, and takes the job anew.
    wait_until(lambda: len(service.attempts(job_id)) == 2 and service.processes(job_id) == 5, 10)
    again = service.attempts(job_id)[0]
    assert (again.state, again.ended_at, again.recorded_seq) == (AttemptState.LOST, first.ended_at, first.recorded_seq)

    worker.kill()
    wait_until(lambda: service.processes(job_id) == 0, SHORT_LEASE)
    assert service.state(job_id) in (JobState.STARTING, JobState.RUNNING)
    wait_until(lambda: _swept(service, job_id) is JobState.QUEUED)
    wait_until(lambda: not left_by(mark), 5)


def test_what_a_machine_lacks_it_does_not_fail_job_after_job_for(service: Service, start: Start) -> None:
    jobs = [service.submit(steps="2") for _ in range(3)]
    blobs = sorted(service.settings.files_dir.iterdir())
    away = service.settings.files_dir.with_name("away")
    service.settings.files_dir.rename(away)
    start(WORKER)
    wait_until(lambda: _slots_dirty(service), 30)
    assert sum(len(service.attempts(job_id)) for job_id in jobs) == 1
    away.rename(service.settings.files_dir)
    wait_until(lambda: all(service.state(job_id) is JobState.SUCCEEDED for job_id in jobs), 30)
    assert blobs == sorted(service.settings.files_dir.iterdir())
    assert not _slots_dirty(service)


def _slots_dirty(service: Service) -> list[str]:
    with service.database.read() as session:
        return [reason for reason in session.scalars(select(Worker.slot_dirty)) if reason is not None]


def test_a_message_is_a_wake_up(service: Service, start: Start, request: pytest.FixtureRequest) -> None:
    if service.database.dialect != "sqlite":
        pytest.skip("the way of a message does not depend on the database")
    broker_url = request.getfixturevalue("valkey_url")
    celery = make_celery(service.settings.model_copy(update={"broker_url": broker_url}))
    start(WORKER, MINILLM_BROKER_URL=broker_url, MINILLM_POLL_SECONDS="600")
    # Nothing but the message can start it; one sent for no job at all does no harm.
    assert wake(celery, "no job; rm -rf /")
    job_id = service.submit(steps="2")
    assert wake(celery, job_id)
    wait_until(lambda: service.state(job_id) is JobState.SUCCEEDED, 30)
    again = service.submit(steps="2")
    sent = time.monotonic()
    assert wake(celery, again)
    wait_until(lambda: service.state(again) is not JobState.QUEUED)
    assert time.monotonic() - sent < 2.0
    celery.close()


def _swept(service: Service, job_id: str) -> JobState:
    sweep_with(service.database, service.settings)
    return service.state(job_id)
