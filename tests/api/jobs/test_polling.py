"""A job is polled past the router: its answers are those of the endpoint, and as fresh."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from api.app import create_app
from api.services import Services
from store.db.database import Database
from store.jobs.repository import JobRepository
from store.settings import Settings
from tests.api.conftest import Row, check_problem
from tests.api.runs import Run


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    return make_settings(database_url=database_url)


def both(client: TestClient, job_id: str) -> Row:
    """What polling and listing answer, twice each: from the row and from memory."""
    first, again = (client.get(f"/v1/jobs/{job_id}") for _ in range(2))
    assert first.headers["etag"] == again.headers["etag"] and first.headers["content-type"] == "application/json"
    assert client.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    head = client.head(f"/v1/jobs/{job_id}")
    assert head.headers["etag"] == first.headers["etag"], "the endpoint's own"
    polled: Row = again.json()
    listed = next(job for job in client.get("/v1/jobs").json()["data"] if job["id"] == job_id)
    for job in (polled, listed, first.json()):
        if job["progress"]["seconds_left"] is not None:
            job["progress"]["seconds_left"] = round(job["progress"]["seconds_left"], -1)
    assert polled == listed
    return polled


def test_every_change_is_seen_at_once(client: TestClient, services: Services, job: Row, spec: Row) -> None:
    job_id = job["id"]
    assert (both(client, job_id)["state"], both(client, job_id)["queue_position"]) == ("queued", 1)
    urgent = client.post("/v1/jobs", json={**spec, "scheduling": {"priority": 5}}).json()["id"]
    assert both(client, job_id)["queue_position"] == 2, "the row itself has not changed"
    client.post(f"/v1/jobs/{urgent}/cancel")
    assert both(client, job_id)["queue_position"] == 1
    etag = client.get(f"/v1/jobs/{job_id}").headers["etag"]
    assert client.patch(f"/v1/jobs/{job_id}", json={"name": "new"}, headers={"If-Match": etag}).status_code == 200
    assert both(client, job_id)["name"] == "new"
    run = Run(services, job_id)
    assert both(client, job_id)["state"] == "starting"
    run.train(2)
    running = both(client, job_id)
    assert running["state"] == "running" and running["progress"]["step"] == 2
    assert running["progress"]["seconds_left"] == 10.0 and running["queue_position"] is None
    run.fail()
    assert both(client, job_id)["failure"]["category"] == "user"
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    check_problem(client.get(f"/v1/jobs/{job_id}"), 404, "not_found")


def test_another_process_is_seen_as_well(client: TestClient, job: Row, settings: Settings) -> None:
    assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"
    with TestClient(create_app(settings)) as other:
        other.post(f"/v1/jobs/{job['id']}/pause")
        assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "paused"
        assert client.get("/v1/jobs").json()["data"][0]["state"] == "paused"


def test_the_time_left_goes_down(client: TestClient, services: Services, job: Row) -> None:
    Run(services, job["id"]).train(1)
    path = f"/v1/jobs/{job['id']}"
    first, second = (client.get(path).json()["progress"]["seconds_left"] for _ in range(2))
    assert 0 <= second < first <= 10
    with services.database.write() as session:
        row = JobRepository(session).get("local", job["id"])
        assert row.progress_at is not None
        row.progress_at -= dt.timedelta(hours=1)
    assert client.get(path).json()["progress"]["seconds_left"] == 0.0


def test_what_a_transaction_wrote_that_never_committed_is_not_kept(
    client: TestClient, services: Services, job: Row
) -> None:
    def refuse(session: Session) -> None:
        if session.info.get("wake_after_commit") is not None:  # a session that writes
            raise RuntimeError("the commit failed")

    path = f"/v1/jobs/{job['id']}"
    before = client.get(path)
    event.listen(Session, "before_commit", refuse)
    try:
        check_problem(client.post(f"{path}/pause"), 500, "internal_error")
    finally:
        event.remove(Session, "before_commit", refuse)
    assert (client.get(path).text, client.get(path).headers["etag"]) == (before.text, before.headers["etag"])
    renamed = client.patch(path, json={"name": "other"}, headers={"If-Match": before.headers["etag"]})
    assert client.get(path).json() == renamed.json() != before.json(), "of the version that was not"


def test_a_change_is_held_against_the_row_as_it_is_once_nobody_else_changes_it(
    client: TestClient, services: Services, job: Row
) -> None:
    path = f"/v1/jobs/{job['id']}"
    etag = client.get(path).headers["etag"]
    asked = threading.Event()

    def patch() -> Any:
        asked.set()
        return client.patch(path, json={"name": "mine"}, headers={"If-Match": etag})

    other = Database(services.settings.database_url)
    with ThreadPoolExecutor(1) as pool:
        with other.write() as session:
            jobs = JobRepository(session)
            jobs.update(jobs.get("local", job["id"]), name="theirs")
            answer = pool.submit(patch)
            asked.wait(10)
            with pytest.raises(TimeoutError):
                answer.result(0.5)
        check_problem(answer.result(30), 412, "precondition_failed", "If-Match")
    other.dispose()
    assert client.get(path).json()["name"] == "theirs"


def test_of_others_nothing_is_said(client: TestClient, job: Row) -> None:
    made = client.post("/v1/api_keys", json={"name": "a", "scopes": ["admin"]}).json()
    admin = {"Authorization": f"Bearer {made['key']}"}
    team = client.post("/v1/api_keys", json={"name": "t", "owner_id": "team"}, headers=admin).json()
    path = f"/v1/jobs/{job['id']}"
    assert client.get(path, headers=admin).status_code == 200
    check_problem(client.get(path, headers={"Authorization": f"Bearer {team['key']}"}), 404, "not_found")
    check_problem(client.get(path), 401, "unauthorized")
    check_problem(client.get(f"{path}?x=1", headers=admin), 422, "unknown_parameter", "x")


def test_it_is_counted_as_its_route(client: TestClient, job: Row) -> None:
    client.get(f"/v1/jobs/{job['id']}")
    line = 'minillm_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"}'
    assert line in client.get("/metrics").text
