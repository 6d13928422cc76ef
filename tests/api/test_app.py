"""Errors of the framework, request ids, health, metrics, and `python -m api` as a process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.services import Services
from store.api_keys import new_token
from store.settings import Settings
from store.workers import WorkerRepository
from tests.api.conftest import Row, check_problem

ROOT = Path(__file__).resolve().parents[2]


class TestProblems:
    def test_unknown_path(self, client: TestClient) -> None:
        body = check_problem(client.get("/v1/nothing"), 404, "not_found")
        assert body["title"] == "Not Found" and "/v1/nothing" in body["detail"]

    def test_unknown_method(self, client: TestClient) -> None:
        response = client.put("/v1/jobs")
        check_problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "GET, HEAD, POST"
        assert client.post("/openapi.json").headers["allow"] == "GET, HEAD"

    @pytest.mark.parametrize("path", ["/v1/jobs/job_x", "/v1/files/file_x", "/v1/models/model_x", "/v1/workers/wrk_x"])
    def test_unknown_id(self, client: TestClient, path: str) -> None:
        check_problem(client.get(path), 404, "not_found")

    def test_an_error_of_ours(self, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("the password is hunter2")

        monkeypatch.setattr("store.files.FileRepository.list", broken)
        response = client.get("/v1/files")
        check_problem(response, 500, "internal_error")
        assert "hunter2" not in response.text

    def test_no_database(self, make_settings: Callable[..., Settings]) -> None:
        settings = make_settings(database_url="postgresql://nobody@127.0.0.1:1/none", bootstrap_api_key="k" * 20)
        with TestClient(create_app(settings)) as client:
            headers = {"Authorization": "Bearer " + "k" * 20}
            response = client.get("/v1/jobs", headers=headers)
            body = check_problem(response, 503, "database_unavailable")
            assert body["retryable"] is True and response.headers["retry-after"] == "2"
            other = {"Authorization": f"Bearer {new_token()}"}
            check_problem(client.get("/v1/jobs", headers=other), 503, "database_unavailable")
            assert client.get("/healthz").status_code == 200
            body = check_problem(client.get("/readyz"), 503, "not_ready")
            assert body["checks"]["database"] != "ok"
            assert "minillm_database_up 0.0" in client.get("/metrics", headers=headers).text


class TestParameters:
    @pytest.mark.parametrize(
        ("method", "path", "name"),
        [
            ("GET", "/v1/jobs?sate=running", "sate"),
            ("POST", "/v1/jobs?dryrun=true", "dryrun"),
            ("GET", "/v1/jobs?metadata=x", "metadata"),
            ("GET", "/v1/jobs?limit=5&offset[a]=1", "offset[a]"),
            ("GET", "/v1/files/file_x?limit=1", "limit"),
            ("DELETE", "/v1/jobs/job_x?force=1", "force"),
        ],
    )
    def test_unknown_ones_are_refused(self, client: TestClient, method: str, path: str, name: str) -> None:
        check_problem(client.request(method, path), 422, "unknown_parameter", name)
        assert client.get("/v1/jobs").json()["data"] == []

    def test_those_that_there_are_are_named(self, client: TestClient) -> None:
        body = check_problem(client.get("/v1/models?knd=base&x=1"), 422, "unknown_parameter", "knd")
        assert "after, before, kind, limit, order" in body["detail"]
        assert [error["param"] for error in body["errors"]] == ["knd", "x"]

    def test_an_item_of_a_list_is_named_by_its_parameter(self, client: TestClient) -> None:
        check_problem(client.get("/v1/jobs?state=running&state=weird"), 422, "invalid_value", "state")


class TestHead:
    @pytest.mark.parametrize("path", ["/healthz", "/v1/jobs", "/v1/models/path:teacher", "/v1/jobs?metadata[a]=b"])
    def test_it_is_get_without_a_body(self, client: TestClient, path: str) -> None:
        assert client.head(path).status_code == client.get(path).status_code == 200

    def test_of_what_is_not_there(self, client: TestClient) -> None:
        assert client.head("/v1/jobs/job_x").status_code == 404

    def test_of_a_stream_does_not_last(self, client: TestClient, job: Row) -> None:
        response = client.head(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"})
        assert response.headers["content-type"].startswith("text/event-stream")


class TestRequestId:
    def test_echoed(self, client: TestClient) -> None:
        assert client.get("/healthz", headers={"X-Request-Id": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"
        body = check_problem(client.get("/nothing", headers={"X-Request-Id": "abc"}), 404, "not_found")
        assert body["instance"] == "abc"

    @pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>", 'a"b'])
    def test_made_where_it_is_not_sane(self, client: TestClient, given: str) -> None:
        made = client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{26}", made)


class TestHealth:
    def test_a_dead_broker_only_degrades(self, client: TestClient) -> None:
        body = client.get("/readyz").json()
        assert body["status"] == "degraded"
        assert body["checks"]["broker"] != "ok"
        assert {name: body["checks"][name] for name in ("database", "migrations", "disk")} == {
            "database": "ok", "migrations": "ok", "disk": "ok"
        }  # fmt: skip

    def test_ready_with_a_broker(self, make_settings: Callable[..., Settings], valkey_url: str) -> None:
        with TestClient(create_app(make_settings(broker_url=valkey_url))) as client:
            assert client.get("/readyz").json()["status"] == "ready"

    def test_not_ready_before_the_migrations(self, make_settings: Callable[..., Settings], tmp_path: Path) -> None:
        with TestClient(create_app(make_settings(database_url=f"sqlite:///{tmp_path}/new.db"))) as client:
            body = check_problem(client.get("/readyz"), 503, "not_ready")
            assert "python -m migrations" in body["checks"]["migrations"]

    def test_metrics(self, client: TestClient, job: Row) -> None:
        client.get(f"/v1/jobs/{job['id']}")
        client.get("/v1/nothing")
        text = client.get("/metrics").text
        assert 'minillm_jobs{state="queued"} 1.0' in text
        assert 'minillm_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 1.0' in text
        assert job["id"] not in text, "labels are templates, or every job would be a series of its own"
        assert "minillm_workers_online 0.0" in text


class TestWorkers:
    def test_list_and_drain(self, client: TestClient, services: Services) -> None:
        with services.database.write() as session:
            worker = WorkerRepository(session).register(host="box", pid=7, heartbeat_seconds=5.0).id
        (listed,) = client.get("/v1/workers").json()["data"]
        assert (listed["id"], listed["host"], listed["online"], listed["draining"]) == (worker, "box", True, False)
        drained = client.post(f"/v1/workers/{worker}/drain")
        assert drained.status_code == 202 and drained.json()["draining"] is True
        undrained = client.post(f"/v1/workers/{worker}/undrain")
        assert undrained.status_code == 202 and undrained.json()["draining"] is False
        with services.database.write() as session:
            WorkerRepository(session).stop(worker)
        assert client.get("/v1/workers").json()["data"] == []
        assert client.get("/v1/workers?include_stopped=true").json()["data"][0]["online"] is False


class TestBroker:
    def test_a_job_is_announced(self, make_settings: Callable[..., Settings], valkey_url: str, spec: Row) -> None:
        app = create_app(make_settings(broker_url=valkey_url))
        with TestClient(app) as client, app.state.services.celery.connection_for_read() as connection:
            channel = connection.default_channel
            channel.queue_purge("gpu")
            job = client.post("/v1/jobs", json=spec).json()
            message = connection.SimpleQueue("gpu").get(timeout=5)
            assert message.headers["task"] == "minillm.attempt"
            assert message.payload[0] == [job["id"]]
            message.ack()

    def test_a_broker_that_never_answers_holds_no_request_up(
        self, make_settings: Callable[..., Settings], spec: Row
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            with TestClient(create_app(make_settings(broker_url=f"redis://127.0.0.1:{port}/0"))) as client:
                begin = time.monotonic()
                assert client.post("/v1/jobs", json=spec).status_code == 201
                assert time.monotonic() - begin < 20


class TestProcess:
    @pytest.fixture
    def environment(self, settings: Settings) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MINILLM_")}
        return {
            **kept,
            "MINILLM_DATA_DIR": str(settings.data_dir),
            "MINILLM_BROKER_URL": settings.broker_url,
            "MINILLM_MIN_FREE_BYTES": "0",
        }

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"MINILLM_HOST": "0.0.0.0"}, "MINILLM_SECRET_KEY"),
            ({"MINILLM_HOST": "0.0.0.0", "MINILLM_SECRET_KEY": "s" * 32}, "API key"),
            ({"MINILLM_HOST": "0.0.0.0", "MINILLM_BOOTSTRAP_API_KEY": "k" * 32}, "MINILLM_SECRET_KEY"),
            ({"MINILLM_SECRET_KEY": "changeme"}, "MINILLM_SECRET_KEY: "),
            ({"MINILLM_PORT": "high"}, "MINILLM_PORT: "),
        ],
    )
    def test_refuses_settings_that_are_wrong_or_open_to_the_network(
        self,
        environment: dict[str, str],
        changes: dict[str, str],
        reason: str,
    ) -> None:
        program = [sys.executable, "-m", "api"]
        variables = {**environment, "MINILLM_PORT": "0", **changes}
        ended = subprocess.run(program, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 78
        assert reason in ended.stderr

    @pytest.fixture
    def served(self, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "api"],
            cwd=ROOT,
            env={**environment, "MINILLM_PORT": str(port)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait(timeout=10)

    def test_serves_and_stops(self, served: tuple[subprocess.Popen[bytes], str]) -> None:
        process, url = served
        for _ in range(300):
            assert process.poll() is None
            try:
                with urllib.request.urlopen(f"{url}/healthz", timeout=5) as response:
                    assert response.status == 200
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail("no answer within 30 seconds")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)
