"""The life of a job over HTTP, on each database: every verb, and what each leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.services import Services
from store.settings import Settings
from tests.api.conftest import Row, check_problem
from tests.api.runs import Run
from tests.fixtures.sweep import sweep


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    return make_settings(database_url=database_url)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def services(client: TestClient) -> Services:
    found: Services = client.app.state.services  # type: ignore[attr-defined]
    return found


def test_every_verb(client: TestClient, services: Services, job: Row) -> None:
    path = f"/v1/jobs/{job['id']}"

    def post(verb: str, body: Any = None) -> Row:
        response = client.post(f"{path}/{verb}", json=body)
        assert response.status_code in (201, 202), response.text
        found: Row = response.json()
        return found

    assert (job["state"], job["queue_position"]) == ("queued", 1)
    changed = {"priority": 9, "max_runtime_seconds": 3600, "metadata": {"team": "search"}}
    assert client.patch(path, json=changed, headers={"If-Match": "*"}).json()["scheduling"]["priority"] == 9
    assert [row["id"] for row in client.get("/v1/jobs", params={"metadata[team]": "search"}).json()["data"]] == [
        job["id"]
    ]

    run = Run(services, job["id"])
    run.train(2)
    for step in (1, 2):
        (run.folder / f"checkpoints/training-{step}").mkdir(parents=True)
    progress = client.get(path).json()["progress"]
    assert progress["step"] == 2 and 0 < progress["seconds_left"] <= 10
    assert post("pause")["state"] == "pausing"
    run.stop()
    assert post("resume")["state"] == "queued"
    Run(services, job["id"]).fail(b"Traceback: the end\n")
    assert post("retry", {"from": "checkpoint"})["state"] == "queued"
    last = Run(services, job["id"])
    assert [point.step for point in last.claim.resume] == [2, 1]
    newest, oldest = client.get(f"{path}/checkpoints").json()["data"]
    check_problem(client.delete(f"{path}/checkpoints/{newest['id']}"), 409, "in_use")
    assert client.patch(f"{path}/checkpoints/{oldest['id']}", json={"pinned": True}).json()["pinned"] is True

    fork = post("fork", {"checkpoint": newest["id"], "overrides": {"training": {"max_steps": 9}}})
    assert (fork["state"], fork["training"]["max_steps"]) == ("queued", 9)
    assert post("cancel", {"keep": "none"})["state"] == "cancelling"
    last.stop()
    assert client.get(path).json()["state"] == "cancelled"
    left = [row["step"] for row in client.get(f"{path}/checkpoints").json()["data"]]
    assert left == [2, 1], "one is pinned, and a fork begins from the other"
    attempts = client.get(f"{path}/attempts").json()["data"]
    assert [(row["state"], row["exit_code"], (row["failure"] or {}).get("category")) for row in attempts] == [
        ("stopped", 75, None),
        ("failed", 64, "user"),
        ("stopped", 75, None),
    ]

    check_problem(client.delete(path), 409, "in_use")
    assert client.post(f"/v1/jobs/{fork['id']}/cancel").json()["state"] == "cancelled"
    assert client.delete(path).status_code == 204
    check_problem(client.get(path), 404, "not_found")
    assert sweep(services.database).delete_jobs == [job["id"]]
