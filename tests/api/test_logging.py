"""What the API says of a request: one line, and its id in every other line that the request causes."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from store.logging import configure_logging
from store.settings import Settings
from tests.api.conftest import BOOTSTRAP, Row

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """What has been logged since the last call."""
    # Set back at the end.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    root = logging.getLogger()
    before, level = set(root.handlers), root.level
    configure_logging(settings.model_copy(update={"log_format": "json"}), program="api")
    (ours,) = set(root.handlers) - before

    def since_then() -> list[dict[str, Any]]:
        told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        return [line for line in told if not line["logger"].startswith("httpx")]  # the test's own client

    yield since_then
    logging.captureWarnings(False)
    root.removeHandler(ours)
    root.setLevel(level)


def test_a_request_is_a_line(client: TestClient, lines: Lines) -> None:
    client.get("/v1/jobs/job_x", headers={"X-Request-Id": "mine"})
    (line,) = [line for line in lines() if line["logger"] == "api.requests"]
    assert (line["method"], line["path"], line["status"], line["request_id"]) == ("GET", "/v1/jobs/job_x", 404, "mine")
    assert line["program"] == "api" and line["milliseconds"] > 0
    client.get("/healthz")
    assert lines() == []


def test_its_id_is_in_each_line(client: TestClient, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        logging.getLogger("store.below").warning("from a thread")
        raise RuntimeError("a fault")

    monkeypatch.setattr("store.jobs.repository.JobRepository.get", fails)
    assert client.get("/v1/jobs/job_x", headers={"X-Request-Id": "mine"}).status_code == 500
    told = lines()
    assert {"from a thread", "the request failed", "request"} <= {line["event"] for line in told}
    assert {line.get("request_id") for line in told} == {"mine"}


def test_so_is_the_job(client: TestClient, spec: Row, lines: Lines) -> None:
    job = client.post("/v1/jobs", json=spec).json()["id"]
    (queued,) = [line for line in lines() if line["event"] == "job queued"]
    assert queued["job_id"] == job and queued["request_id"].startswith("req_")
    client.post(f"/v1/jobs/{job}/pause")
    assert {line["job_id"] for line in lines()} == {job}


def test_no_key_is_logged(make_settings: Callable[..., Settings], lines: Lines) -> None:
    with TestClient(create_app(make_settings(bootstrap_api_key=BOOTSTRAP))) as client:
        client.get("/v1/jobs", headers={"Authorization": f"Bearer {BOOTSTRAP}"})
    told = json.dumps(lines())
    assert "api.requests" in told and BOOTSTRAP not in told
