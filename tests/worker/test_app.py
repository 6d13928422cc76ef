"""``celery -A worker.app worker`` is what a Celery user expects: inspect, queues, slots, events, remote control."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from store.broker import CPU_QUEUE, make_celery, wake
from store.db.tables import Worker
from store.jobs.vocabulary import AttemptState, JobState
from tests.fixtures.play import WORKER, Service
from tests.fixtures.process import Start, wait_until

MOST = 40.0


@pytest.fixture
def celery(service: Service, valkey_url: str, request: pytest.FixtureRequest) -> Iterator[Celery]:
    """The app of somebody who looks on; the tests below do not depend on the database."""
    if service.database.dialect != "sqlite":
        pytest.skip("nothing here depends on the database")
    app = make_celery(service.settings.model_copy(update={"broker_url": valkey_url}))
    yield app
    app.close()


@pytest.fixture
def work(start: Start, valkey_url: str, celery: Celery) -> Callable[..., subprocess.Popen[bytes]]:
    """Start a worker with options of Celery's command line; it polls alone unless told otherwise."""

    def starter(*options: str, **settings: str) -> subprocess.Popen[bytes]:
        return start(WORKER, *options, MINILLM_BROKER_URL=valkey_url, **settings)

    return starter


def active(celery: Celery) -> list[dict[str, Any]]:
    answers = celery.control.inspect(timeout=1.0).active() or {}
    return [task for tasks in answers.values() for task in tasks]


class TestInspect:
    def test_ping_answers_and_active_shows_the_jobs_of_every_slot(
        self, service: Service, celery: Celery, work: Callable[..., Any]
    ) -> None:
        jobs = {service.submit(steps="1000", delay="0.05") for _ in range(3)}
        work("--concurrency=2")
        wait_until(lambda: len([task for task in active(celery) if task["kwargs"]]) == 2, MOST)
        shown = active(celery)
        assert {task["name"] for task in shown} == {"minillm.attempt"}
        assert {task["kwargs"]["job"] for task in shown} < jobs and {task["kwargs"]["attempt"] for task in shown} == {1}
        assert len({task["worker_pid"] for task in shown}) == 2
        assert list((celery.control.inspect(timeout=1.0).ping() or {}).values()) == [{"ok": "pong"}]
        with service.database.read() as session:
            (row,) = session.query(Worker).all()
        assert (row.slots, len(row.devices["slots"]), row.devices["queues"]) == (2, 2, ["gpu", "cpu"])
        pids = {task["worker_pid"] for task in shown}
        assert pids == {service.attempts(task["kwargs"]["job"])[0].supervisor_pid for task in shown}


class TestRemoteControl:
    def test_shutdown_hands_the_running_job_back(
        self, service: Service, celery: Celery, work: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        job_id = service.submit(steps="1000", delay="0.05")
        worker = work()
        wait_until(lambda: service.steps(job_id), MOST)
        celery.control.shutdown()
        worker.wait(MOST)
        (attempt,) = service.attempts(job_id)
        assert (service.state(job_id), attempt.state) == (JobState.QUEUED, AttemptState.STOPPED)
        with service.database.read() as session:
            assert session.query(Worker).one().stopped_at is not None

    def test_a_revoked_attempt_is_handed_back_and_goes_on(
        self, service: Service, celery: Celery, work: Callable[..., Any]
    ) -> None:
        job_id = service.submit(steps="200", delay="0.05")
        work()
        wait_until(lambda: service.steps(job_id), MOST)
        (task,) = active(celery)
        celery.control.revoke(task["id"], terminate=True)
        wait_until(lambda: service.state(job_id) is JobState.SUCCEEDED, MOST)
        revoked, again = service.attempts(job_id)
        assert (revoked.state, again.state) == (AttemptState.STOPPED, AttemptState.SUCCEEDED)
        assert service.job(job_id).retries == 0

    def test_the_pool_stays_as_it_was_made(self, service: Service, celery: Celery, work: Callable[..., Any]) -> None:
        job_id = service.submit(steps="200", delay="0.05")
        work()
        wait_until(lambda: service.steps(job_id), MOST)
        control = celery.control
        answers = [
            *control.pool_grow(1, reply=True),
            *control.pool_shrink(1, reply=True),
            *control.autoscale(4, 1, reply=True),
            *control.pool_restart(reply=True),
            *control.time_limit("minillm.attempt", hard=1, reply=True),
        ]
        assert len(answers) == 5
        for answer in answers:
            (said,) = answer.values()
            assert "slot" in said["error"], said
        wait_until(lambda: service.state(job_id) is JobState.SUCCEEDED, MOST)
        assert len(service.attempts(job_id)) == 1


class TestMessage:
    def test_says_nothing_but_that_there_may_be_work(
        self, service: Service, celery: Celery, work: Callable[..., Any]
    ) -> None:
        """Neither its arguments nor what Celery would take from its headers touches an attempt."""
        work(MINILLM_POLL_SECONDS="600")
        wait_until(lambda: celery.control.inspect(timeout=1.0).ping(), MOST)
        job_id = service.submit(steps="40", delay="0.1")
        celery.send_task(
            "minillm.attempt", args=[{"job": "../x"}], kwargs={"y": 1}, time_limit=1, soft_time_limit=1, queue="cpu"
        )
        wait_until(lambda: service.state(job_id) is JobState.SUCCEEDED, MOST)
        assert len(service.attempts(job_id)) == 1

    def test_workers_listen_to_the_queues_of_their_devices(
        self, service: Service, celery: Celery, work: Callable[..., Any]
    ) -> None:
        meant_for_gpus = service.submit(steps="1")
        work("-Q", CPU_QUEUE, MINILLM_POLL_SECONDS="600")
        wait_until(lambda: celery.control.inspect(timeout=1.0).ping(), MOST)
        queues = (celery.control.inspect(timeout=1.0).active_queues() or {}).values()
        assert [[queue["name"] for queue in listened] for listened in queues] == [["cpu"]]
        job_id = service.submit(steps="1", gpus=0)
        assert wake(celery, job_id, gpus=0)
        wait_until(lambda: service.state(job_id) is JobState.SUCCEEDED, MOST)
        assert service.state(meant_for_gpus) is JobState.QUEUED


def test_events_tell_of_attempts_that_no_message_began(
    service: Service, celery: Celery, work: Callable[..., Any]
) -> None:
    seen: list[dict[str, Any]] = []
    with celery.connection_for_read() as connection:
        receiver = celery.events.Receiver(connection)

        def note(event: dict[str, Any]) -> None:
            seen.append(event)
            receiver.should_stop = event["type"] == "task-succeeded"

        receiver.handlers = {"*": note}
        work("-E")
        job_id = service.submit(steps="2")
        listener = threading.Thread(target=receiver.capture, kwargs={"timeout": MOST}, daemon=True)
        listener.start()
        listener.join(MOST)
        assert receiver.should_stop
    kinds = [event["type"] for event in seen if event["type"].startswith("task-")]
    assert kinds == ["task-received", "task-started", "task-succeeded"]
    assert job_id in next(event["result"] for event in seen if event["type"] == "task-succeeded")


class TestStart:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--autoscale=2,1"], "fixed size"),
            (["--pool=solo"], "prefork"),
            (["-Q", "gpus"], "Trying to select queue subset of ['gpus']"),
        ],
    )
    def test_what_a_slot_cannot_be_is_refused(
        self, service: Service, environment: dict[str, str], options: list[str], told: str
    ) -> None:
        if service.database.dialect != "sqlite":
            pytest.skip("nothing here depends on the database")
        command = [sys.executable, WORKER, *options]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert ended.returncode != 0 and told in ended.stderr + ended.stdout
        with service.database.read() as session:
            assert session.query(Worker).count() == 0
