"""A broker that dies, forgets or repeats itself costs latency alone (faults 1, 3, 5, 13, 16, 17 and 18)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
import redis
from starlette.testclient import TestClient

from api.app import create_app
from store.broker import make_celery, wake
from store.jobs.vocabulary import AttemptState, JobState
from tests.api.conftest import upload
from tests.api.model_folders import write_model
from tests.faults.conftest import sweeper_of
from tests.fixtures.broker import Broker
from tests.fixtures.play import BY_MESSAGE, SHORT_LEASE, WORKER, Service
from tests.fixtures.process import Start, wait_until
from worker.process.identity import attempt_processes

PATIENCE = 60.0


@pytest.fixture
def announce(service: Service, broker: Broker) -> Callable[[str], bool]:
    celery = make_celery(service.settings.model_copy(update={"broker_url": broker.url}))
    return lambda job_id: wake(celery, job_id)


def succeeds(service: Service, job_id: str) -> None:
    wait_until(lambda: service.state(job_id) is JobState.SUCCEEDED, PATIENCE)


class TestRestart:
    def test_a_worker_goes_on_during_it_and_listens_again_after_it(
        self, service: Service, start: Start, broker: Broker, announce: Callable[[str], bool]
    ) -> None:
        start(WORKER, MINILLM_BROKER_URL=broker.url, **BY_MESSAGE)
        busy = service.submit(steps="40", delay="0.1")
        assert announce(busy)
        wait_until(lambda: service.steps(busy), PATIENCE)
        broker.kill()
        waiting = service.submit(steps="2")
        assert not announce(waiting), "nobody is there to take it, and nobody waits for long"
        broker.start()
        succeeds(service, busy)
        # The slot is free again, so the worker looks for work once more before it waits for a message.
        succeeds(service, waiting)
        again = service.submit(steps="2")
        assert announce(again)
        succeeds(service, again)
        assert [len(service.attempts(job)) for job in (busy, waiting, again)] == [1, 1, 1]

    def test_one_that_keeps_nothing_forgets_what_the_sweeper_repeats(
        self, service: Service, start: Start, make_broker: Callable[..., Broker]
    ) -> None:
        broker = make_broker(aof=False)
        sweeper = sweeper_of(service, broker_url=broker.url, wake_seconds=0.5)
        job_id = service.submit(steps="2")
        assert sweeper.sweep_once() is not None
        broker.kill()
        broker.start()
        start(WORKER, MINILLM_BROKER_URL=broker.url, **BY_MESSAGE)
        wait_until(lambda: sweeper.sweep_once() and service.state(job_id) is JobState.SUCCEEDED, PATIENCE)


def test_a_flushed_broker_loses_no_job(service: Service, start: Start, broker: Broker) -> None:
    sweeper = sweeper_of(service, broker_url=broker.url, wake_seconds=0.5)
    start(WORKER, MINILLM_BROKER_URL=broker.url, **BY_MESSAGE)
    first = service.submit(steps="10", delay="0.1")
    wait_until(lambda: sweeper.sweep_once() and service.steps(first), PATIENCE)
    waiting = [service.submit(steps="2") for _ in range(3)]
    assert sweeper.sweep_once() is not None
    with redis.Redis(unix_socket_path=broker.url.removeprefix("redis+socket://")) as client:
        client.flushall()
    for job_id in (first, *waiting):
        wait_until(lambda: sweeper.sweep_once() and service.state(job_id) is JobState.SUCCEEDED, PATIENCE)  # noqa: B023
        assert len(service.attempts(job_id)) == 1


def test_jobs_accepted_without_a_broker_run_once_it_is_there(
    service: Service, start: Start, make_broker: Callable[..., Broker]
) -> None:
    broker = make_broker(started=False)
    settings = service.settings.model_copy(update={"broker_url": broker.url, "wake_seconds": 1.0})
    (settings.models_dir / "teacher").rmdir()
    write_model(settings.models_dir, "teacher", layers=4)
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        file_id = upload(client).json()["id"]
        spec = {
            "teacher": {"model": "path:teacher"},
            "student": {"prune_teacher": {"layers": 2}},
            "dataset": {"file": file_id},
            "method": {"type": "sft"},
            "metadata": {"steps": "1"},
        }
        sent = time.monotonic()
        answers = [client.post("/v1/jobs", json=spec) for _ in range(10)]
        assert [answer.status_code for answer in answers] == [201] * 10
        assert time.monotonic() - sent < 20, "a dead broker holds no request up"
    broker.start()
    start(WORKER, MINILLM_BROKER_URL=broker.url, **BY_MESSAGE)
    sweeper = sweeper_of(service, broker_url=broker.url, wake_seconds=1.0)
    with service.database.read() as session:
        owner = session.connection().exec_driver_sql("SELECT DISTINCT owner_id FROM jobs").scalars().one()
    assert owner is not None

    def all_done() -> bool:
        assert sweeper.sweep_once() is not None
        with service.database.read() as session:
            states = session.connection().exec_driver_sql("SELECT state FROM jobs").scalars().all()
        return states == ["succeeded"] * 10

    wait_until(all_done, PATIENCE)


class TestPool:
    def test_its_process_dies_and_the_job_is_taken_up_again(
        self, service: Service, start: Start, broker: Broker
    ) -> None:
        start(WORKER, MINILLM_BROKER_URL=broker.url, MINILLM_LEASE_SECONDS=str(SHORT_LEASE))
        job_id = service.submit(steps="40", delay="0.1")
        wait_until(lambda: service.steps(job_id), PATIENCE)
        (attempt,) = service.attempts(job_id)
        os.kill(attempt.supervisor_pid, signal.SIGKILL)
        wait_until(lambda: not attempt_processes([attempt.id]), PATIENCE)
        sweeper = sweeper_of(service)
        wait_until(lambda: sweeper.sweep_once() and service.state(job_id) is JobState.SUCCEEDED, PATIENCE)
        lost, resumed = service.attempts(job_id)
        assert (lost.state, resumed.worker_id) == (AttemptState.LOST, lost.worker_id)
        assert resumed.supervisor_pid != lost.supervisor_pid

    def test_its_process_may_die_before_there_was_a_broker(
        self, service: Service, start: Start, make_broker: Callable[..., Broker]
    ) -> None:
        broker = make_broker(started=False)
        worker = start(WORKER, MINILLM_BROKER_URL=broker.url)
        first = service.submit(steps="2")
        succeeds(service, first)
        os.kill(service.attempts(first)[0].supervisor_pid, signal.SIGKILL)
        broker.start()
        celery = make_celery(service.settings.model_copy(update={"broker_url": broker.url}))
        wait_until(lambda: celery.control.inspect(timeout=1.0).ping(), PATIENCE)
        succeeds(service, service.submit(steps="2"))
        assert worker.poll() is None

    def test_an_idle_worker_takes_the_job_behind_a_busy_one(
        self, service: Service, start: Start, broker: Broker, announce: Callable[[str], bool]
    ) -> None:
        long = service.submit(steps="1000", delay="0.1")
        start(WORKER, MINILLM_BROKER_URL=broker.url, **BY_MESSAGE)
        assert announce(long)
        wait_until(lambda: service.steps(long), PATIENCE)
        # Both messages are there before the second worker is: the busy one must not have reserved them.
        short = [service.submit(steps="2") for _ in range(2)]
        assert all(announce(job_id) for job_id in short)
        start(WORKER, MINILLM_BROKER_URL=broker.url, **BY_MESSAGE)
        for job_id in short:
            succeeds(service, job_id)
        assert service.state(long) is JobState.RUNNING
