"""Twenty workers and a visibility timeout of three seconds never run an attempt twice (fault 1)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select

from store.broker import make_celery, wake
from store.db.tables import Attempt, Job, Worker
from store.jobs.vocabulary import JobState
from tests.fixtures.broker import Broker
from tests.fixtures.play import BY_MESSAGE, Service
from tests.fixtures.process import wait_until

PROGRAM = str(Path(__file__).with_name("twenty_workers.py"))
JOBS, WORKERS = 26, 20


def test_each_attempt_runs_once(
    service: Service, start: Callable[..., subprocess.Popen[bytes]], broker: Broker
) -> None:
    """Every job outlives the timeout, every job is announced thrice, and nothing but messages starts one."""
    leases = {"MINILLM_LEASE_SECONDS": "60", "MINILLM_HEARTBEAT_SECONDS": "2"}
    program = start(PROGRAM, MINILLM_BROKER_URL=broker.url, **{**BY_MESSAGE, **leases})

    def count(table: type[Worker] | type[Attempt]) -> int:
        with service.database.read() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0

    wait_until(lambda: count(Worker) == WORKERS, 120)
    celery = make_celery(service.settings.model_copy(update={"broker_url": broker.url}))
    jobs = [service.submit(steps="50", delay="0.1") for _ in range(JOBS)]
    for _ in range(3):
        for job_id in jobs:
            assert wake(celery, job_id)

    def all_done() -> bool:
        with service.database.read() as session:
            states = session.scalars(select(Job.state)).all()
        assert set(states) <= {JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.SUCCEEDED}
        return set(states) == {JobState.SUCCEEDED}

    wait_until(all_done, 180)
    assert count(Attempt) == JOBS
    with service.database.read() as session:
        workers = session.scalar(select(func.count(func.distinct(Attempt.worker_id))))
    assert workers is not None and workers >= WORKERS // 2, "many of them have worked"
    for job_id in jobs:
        lines = (service.settings.runs.attempt(job_id, 1).path / "events.jsonl").read_text().splitlines()
        seqs = [json.loads(line)["seq"] for line in lines]
        assert seqs == list(range(1, len(seqs) + 1)), "one trainer wrote them all"
    program.terminate()
    assert program.wait(60) == 0
