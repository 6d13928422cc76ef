"""Many requests at once, over real HTTP: those who write wait for each other, and nobody else waits for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_app
from store.db.database import Database
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.repository import JobRepository
from store.settings import Settings
from tests.api.conftest import Row, check_problem, jsonl, upload
from tests.api.runs import Run
from tests.fixtures.server import ServerThread

CLIENTS = 60


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    return make_settings(database_url=database_url)


@pytest.fixture
def served(client: TestClient) -> Iterator[httpx.Client]:
    """The app of `client` behind a socket, with connections for everyone."""
    server = ServerThread(client.app)
    server.start()
    limits = httpx.Limits(max_connections=CLIENTS + 10, max_keepalive_connections=CLIENTS + 10)
    with httpx.Client(base_url=server.url, limits=limits, timeout=60) as http:
        yield http
    server.stop()


@contextlib.contextmanager
def nobody_writes(database: Database) -> Iterator[None]:
    """Holds a lock that every writer of the store waits for; reading goes on."""
    other = Database(database.url.render_as_string(hide_password=False))
    try:
        with other.write() as session:
            if other.dialect == "postgresql":
                session.execute(text("LOCK TABLE jobs, files, checkpoints IN SHARE MODE"))
            else:
                session.execute(text("SELECT 1"))
            yield
    finally:
        other.dispose()


Request = Callable[[httpx.Client], httpx.Response]


def requests(spec: Row, failed: str, queued: str, checkpoint: str) -> list[Request]:
    """One of each kind that writes; they may be sent at the same time."""
    etag = {"If-Match": "*"}
    file = {"file": ("rows.jsonl", jsonl(*({"instruction": "a", "output": "b"} for _ in range(2))))}
    return [
        lambda http: http.post("/v1/jobs", json=spec),
        lambda http: http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "same"}),
        lambda http: http.post(f"/v1/jobs/{failed}/fork", json={"checkpoint": checkpoint}),
        lambda http: http.patch(f"/v1/jobs/{queued}", json={"name": "new"}, headers=etag),
        lambda http: http.patch(f"/v1/jobs/{failed}/checkpoints/{checkpoint}", json={"pinned": True}),
        lambda http: http.post("/v1/files", files=file),
    ]


def test_readers_do_not_wait_for_writers(served: httpx.Client, client: TestClient, spec: Row, job: Row) -> None:
    services: Any = client.app.state.services  # type: ignore[attr-defined]
    failed = client.post("/v1/jobs", json=spec).json()["id"]
    run = Run(services, failed)
    run.train(1)
    (run.folder / "checkpoints" / "training-1").mkdir(parents=True)
    run.fail()
    with services.database.read() as session:
        found = JobRepository(session).get("local", failed)
        checkpoint = CheckpointRepository(session).list(found).items[0].id
    kinds = requests(spec, failed, job["id"], checkpoint)
    with ThreadPoolExecutor(CLIENTS) as pool:
        with nobody_writes(services.database):
            writing: list[Future[httpx.Response]] = [
                pool.submit(kinds[number % len(kinds)], served) for number in range(CLIENTS - 1)
            ]
            writing.append(pool.submit(served.post, f"/v1/jobs/{failed}/retry"))
            time.sleep(1.0)  # until they have all been sent
            assert not any(future.done() for future in writing)
            for path in ("/healthz", f"/v1/jobs/{job['id']}", "/v1/jobs", "/v1/models", f"/v1/jobs/{failed}/events"):
                assert served.get(path, timeout=10).status_code == 200, path
        answers = [future.result() for future in writing]
    assert {answer.status_code for answer in answers} <= {200, 201, 202}, {a.text for a in answers if a.is_error}
    jobs = [answer.json()["id"] for answer in answers if answer.status_code == 201 and "queue_position" in answer.text]
    assert len(set(jobs)) == len(jobs) - CLIENTS // len(kinds) + 1, "those of one Idempotency-Key are one job"


def test_no_connection_in_time_is_a_503(make_settings: Callable[..., Settings], database_url: str) -> None:
    settings = make_settings(database_url=database_url, threads=2, pool_timeout_seconds=0.1)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        assert upload(client).status_code == 201
        database: Database = client.app.state.services.database  # type: ignore[attr-defined]
        with contextlib.ExitStack() as stack:
            for _ in range(settings.threads):
                stack.enter_context(database.read()).execute(text("SELECT 1"))
            answer = client.get("/v1/files")
            check_problem(answer, 503, "database_unavailable")
            assert answer.json()["retryable"] and int(answer.headers["retry-after"]) > 0
        assert client.get("/v1/files").status_code == 200
