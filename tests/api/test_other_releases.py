"""Rows that another release wrote are shown as they are stored, and can be cancelled, deleted and refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_app
from api.services import Services
from minillm_core.spec.versions import SPEC
from store.settings import Settings
from tests.api.conftest import Row, check_problem
from tests.api.runs import Run

SPECS: dict[str, str] = {
    "newer": json.dumps({"spec_version": SPEC.version + 1, "teacher": "one word", "rewards": {"kind": "new"}}),
    "a method that is no more": json.dumps(
        {"teacher": {"model": "gpt2"}, "method": {"type": "old", "lr": 1e300}, "scheduling": {"priority": 7}}
    ),
    "numbers of before": json.dumps({"training": {"max_steps": 10**30, "betas": None}, "evaluation": {"seeds": [-1]}}),
    "no object": "[1, 2]",
    "no JSON": "{",
}
ODD = {
    "failure": {"why": "of another release", "failure_version": 99},
    "report": {"report_version": 99, "rouge": [1, None]},
    "metrics": {"loss": None, "name": "x", "list": [1]},
    "metadata": {"team": 7, "nested": {"a": [1]}},
}


@pytest.fixture
def client(make_settings: Callable[..., Settings], database_url: str) -> Iterator[TestClient]:
    with TestClient(create_app(make_settings(database_url=database_url)), raise_server_exceptions=False) as client:
        yield client


def put(client: TestClient, table: str, where: str, **columns: Any) -> None:
    changes = ", ".join(f'"{name}" = :{name}' for name in columns)
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    with services.database.write() as session:
        session.execute(text(f"UPDATE {table} SET {changes} WHERE {where}"), columns)


@pytest.mark.parametrize("stored", SPECS.values(), ids=SPECS)
def test_a_job_with_the_spec_of_another_release(client: TestClient, job: Row, stored: str) -> None:
    path = f"/v1/jobs/{job['id']}"
    put(client, "jobs", f"id = '{job['id']}'", spec=stored)
    shown = client.get(path)
    assert shown.status_code == 200, shown.text
    (listed,) = client.get("/v1/jobs").json()["data"]
    assert listed == shown.json()
    document = json.loads(stored) if stored.startswith('{"') else {}
    for name in ("teacher", "method", "training", "evaluation"):
        assert shown.json()[name] == document.get(name), name
    assert shown.json()["name"] == "tiny"

    assert client.patch(path, json={"name": "named", "priority": 0}, headers={"If-Match": "*"}).status_code == 200
    check_problem(client.post(f"{path}/fork", json={}), 409, "job_unreadable")
    check_problem(client.post(f"{path}/retry"), 409, "not_retryable")
    check_problem(client.delete(path), 409, "job_not_finished")
    assert client.post(f"{path}/pause").json()["state"] == "paused"
    assert client.post(f"{path}/resume").json()["state"] == "queued"
    assert client.post(f"{path}/cancel").json()["state"] == "cancelled"
    for below in ("events", "metrics", "attempts", "checkpoints"):
        assert client.get(f"{path}/{below}").status_code == 200
    assert client.delete(path).status_code == 204
    check_problem(client.get(path), 404, "not_found")


def test_json_of_another_release(client: TestClient, job: Row) -> None:
    put(client, "jobs", f"id = '{job['id']}'", **{name: json.dumps(value) for name, value in ODD.items()})
    for shown in (client.get(f"/v1/jobs/{job['id']}").json(), client.get("/v1/jobs").json()["data"][0]):
        assert {name: shown[name] for name in ODD} == ODD


@pytest.mark.parametrize("value", ["[]", '"text"', "7"])
def test_json_of_another_kind(client: TestClient, job: Row, value: str) -> None:
    put(client, "jobs", f"id = '{job['id']}'", **dict.fromkeys(ODD, value))
    shown = client.get(f"/v1/jobs/{job['id']}").json()
    assert [shown[name] for name in ODD] == [json.loads(value)] * len(ODD)
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"


def test_words_of_another_release(client: TestClient, job: Row) -> None:
    put(client, "jobs", f"id = '{job['id']}'", state="dreaming", desired_state="dream", phase="deep", keep="all")
    for shown in (client.get(f"/v1/jobs/{job['id']}").json(), client.get("/v1/jobs").json()["data"][0]):
        assert (shown["state"], shown["desired_state"], shown["phase"]) == ("dreaming", "dream", "deep")
    check_problem(client.delete(f"/v1/jobs/{job['id']}"), 409, "job_not_finished")
    assert client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 409


def test_what_a_run_of_another_release_left(client: TestClient, job: Row) -> None:
    run = Run(client.app.state.services, job["id"])  # type: ignore[attr-defined]
    run.train(1)
    run.succeed()
    path = f"/v1/jobs/{job['id']}"
    where = f"job_id = '{job['id']}'"
    put(client, "attempts", where, failure='{"failure_version": 9}', state="asleep", phase="deep", exit_code=-(2**40))
    put(client, "events", where, data='["odd"]', type="dream", code="x" * 90, level="loud")
    put(client, "metric_points", where, values='{"loss": null, "name": "x"}', phase="deep")
    put(client, "checkpoints", where, metrics='{"a": "b"}', phase="deep")
    put(client, "artifacts", where, manifest='{"manifest_version": 9, "files": [{"name": 1}]}')
    for below in ("", "/events", "/metrics", "/attempts", "/attempts/1", "/checkpoints", "/artifact", "/logs"):
        response = client.get(path + below)
        assert response.status_code == 200, (below, response.text)
    (attempt,) = client.get(f"{path}/attempts").json()["data"]
    assert (attempt["state"], attempt["failure"]) == ("asleep", {"failure_version": 9})
    assert client.get(f"{path}/events").json()["data"][0]["data"] == ["odd"]
