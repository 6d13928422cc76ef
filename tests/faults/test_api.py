"""An API that dies at a bad moment (faults 13, 14 and 33): what was accepted runs, what was not is not there."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from store.db.tables import Job
from store.jobs.vocabulary import JobState
from store.workers import WorkerRepository
from tests.api.model_folders import write_model
from tests.faults.conftest import DYING, sweeper_of
from tests.fixtures.play import Service
from tests.fixtures.process import wait_until

Start = Callable[..., "subprocess.Popen[bytes]"]
KEY = {"Idempotency-Key": "one-job"}


class Api:
    """An API program that a test starts again and again at one address."""

    def __init__(self, start: Start) -> None:
        self._start = start
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        program = self._start(*command, MINILLM_PORT=str(self._port))

        def ready() -> bool:
            assert program.poll() is None
            try:
                return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(ready, 60)
        return program

    def spec(self) -> dict[str, Any]:
        rows = b"".join(json.dumps({"instruction": f"say {n}", "output": "cat"}).encode() + b"\n" for n in range(4))
        file = httpx.post(f"{self.url}/v1/files", files={"file": ("rows.jsonl", rows)}, timeout=30)
        assert file.status_code == 201, file.text
        return {
            "teacher": {"model": "path:teacher"},
            "student": {"prune_teacher": {"layers": 2}},
            "dataset": {"file": file.json()["id"]},
            "method": {"type": "sft"},
        }

    def create(self, spec: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/jobs", json=spec, headers=KEY, timeout=30)


@pytest.fixture
def api(service: Service, start: Start) -> Api:
    (service.settings.models_dir / "teacher").rmdir()
    write_model(service.settings.models_dir, "teacher", layers=4)
    return Api(start)


def jobs(service: Service) -> list[Job]:
    with service.database.read() as session:
        return list(session.scalars(select(Job)))


@pytest.mark.parametrize(
    ("moment", "kept"),
    [
        pytest.param("store.announcer:Announcer.announce:before", True, id="after the commit, before the message"),
        pytest.param("store.idempotency:IdempotencyRepository.complete:after", False, id="before the commit"),
    ],
)
def test_death_while_a_job_is_made(service: Service, api: Api, moment: str, kept: bool) -> None:
    dying = api.start(DYING, moment, "api")
    spec = api.spec()
    with pytest.raises(httpx.TransportError):
        pytest.fail(api.create(spec).text)
    assert dying.wait(20) == -signal.SIGKILL
    assert [job.state for job in jobs(service)] == ([JobState.QUEUED] if kept else [])
    # The client asks once more: one job, whichever it was.
    api.start("-m", "api")
    answer = api.create(spec)
    assert answer.status_code == 201
    assert [job.id for job in jobs(service)] == [answer.json()["id"]]
    # Nobody has heard of it, since the broker is dead too: the sweep announces it to whoever is idle.
    with service.database.write() as session:
        WorkerRepository(session).register(host="h", pid=1, heartbeat_seconds=5.0)
    assert sweeper_of(service).announce.run_once() == [answer.json()["id"]]
