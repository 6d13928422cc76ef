"""Every endpoint of the service has a method of the client, and every kind of answer is understood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from minillm import Client
from minillm.types import Answer
from store.settings import Settings

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()

# What the client does for an endpoint, with ids that name the parameters of its path.
METHODS: dict[str, Callable[[Client, Path], object]] = {
    "POST /v1/files": lambda client, folder: client.upload_file(folder / "rows.jsonl", purpose="corpus"),
    "GET /v1/files": lambda client, _: client.files(purpose="corpus"),
    "GET /v1/files/{file_id}": lambda client, _: client.file("file_id"),
    "GET /v1/files/{file_id}/content": lambda client, folder: client.download_file("file_id", folder / "copy"),
    "DELETE /v1/files/{file_id}": lambda client, _: client.delete_file("file_id"),
    "GET /v1/models": lambda client, _: client.models(kind="base"),
    "GET /v1/models/{model_id}": lambda client, _: client.model("model_id"),
    "POST /v1/jobs": lambda client, _: (client.create_job({}), client.dry_run({})),
    "GET /v1/jobs": lambda client, _: client.jobs(state="queued", metadata={"team": "search"}),
    "GET /v1/jobs/{job_id}": lambda client, _: client.job("job_id"),
    "PATCH /v1/jobs/{job_id}": lambda client, _: client.update("job_id", name="new"),
    "DELETE /v1/jobs/{job_id}": lambda client, _: client.delete("job_id"),
    "POST /v1/jobs/{job_id}/cancel": lambda client, _: client.cancel("job_id"),
    "POST /v1/jobs/{job_id}/pause": lambda client, _: client.pause("job_id"),
    "POST /v1/jobs/{job_id}/resume": lambda client, _: client.resume("job_id"),
    "POST /v1/jobs/{job_id}/retry": lambda client, _: client.retry("job_id"),
    "POST /v1/jobs/{job_id}/fork": lambda client, _: client.fork("job_id"),
    "GET /v1/jobs/{job_id}/events": lambda client, _: client.events("job_id", after=0),
    "GET /v1/jobs/{job_id}/metrics": lambda client, _: (
        client.metrics("job_id", names=["loss"], phase="training", since_step=1, points=9),
        list(client.metrics_csv("job_id", names=["loss"])),
    ),
    "GET /v1/jobs/{job_id}/checkpoints": lambda client, _: client.checkpoints("job_id"),
    "GET /v1/jobs/{job_id}/checkpoints/{checkpoint_id}": lambda client, _: client.checkpoint("job_id", "checkpoint_id"),
    "PATCH /v1/jobs/{job_id}/checkpoints/{checkpoint_id}": lambda client, _: client.update_checkpoint(
        "job_id", "checkpoint_id", pinned=True
    ),
    "DELETE /v1/jobs/{job_id}/checkpoints/{checkpoint_id}": lambda client, _: client.delete_checkpoint(
        "job_id", "checkpoint_id"
    ),
    "GET /v1/jobs/{job_id}/attempts": lambda client, _: client.attempts("job_id"),
    "GET /v1/jobs/{job_id}/attempts/{number}": lambda client, _: client.attempt("job_id", 7),
    "GET /v1/jobs/{job_id}/logs": lambda client, _: client.logs("job_id", attempt=1),
    "GET /v1/jobs/{job_id}/artifact": lambda client, _: client.artifact("job_id"),
    "GET /v1/jobs/{job_id}/artifact/files/{name}": lambda client, folder: client.download("job_id", folder / "student"),
    "GET /v1/workers": lambda client, _: client.workers(include_stopped=True),
    "GET /v1/workers/{worker_id}": lambda client, _: client.worker("worker_id"),
    "POST /v1/workers/{worker_id}/drain": lambda client, _: client.drain("worker_id"),
    "POST /v1/workers/{worker_id}/undrain": lambda client, _: client.undrain("worker_id"),
    "POST /v1/api_keys": lambda client, _: client.create_key("team", expires_at=datetime(2040, 1, 1, tzinfo=UTC)),
    "GET /v1/api_keys": lambda client, _: client.keys(),
    "GET /v1/api_keys/{key_id}": lambda client, _: client.key("key_id"),
    "DELETE /v1/api_keys/{key_id}": lambda client, _: client.revoke_key("key_id"),
    "GET /healthz": lambda client, _: client.health(),
    "GET /readyz": lambda client, _: client.readiness(),
    "GET /metrics": lambda client, _: client.prometheus(),
}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = create_app(Settings(data_dir=tmp_path_factory.mktemp("openapi"))).openapi()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


class Recorded:
    """A service that answers each operation with the example of its document, and keeps what it was asked."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._operations = operations(document)
        self.seen: list[tuple[str, httpx.Request]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        operation = self._find(request)
        self.seen.append((operation, request))
        if operation.endswith("/content") or request.url.path.endswith("/weights"):
            return httpx.Response(200, content=CONTENT)
        if operation.endswith("/files/{name}"):
            return httpx.Response(200, content=b"{}")
        served = self._operations[operation]["responses"].keys()
        status = next((made for made in ("201", "202", "204") if made in served and not request.url.query), "200")
        content = self._operations[operation]["responses"][status].get("content", {})
        schema = content.get("application/json", {}).get("schema", {}) if "csv" not in request.headers["accept"] else {}
        if "$ref" not in schema:
            return httpx.Response(int(status), text="text")
        return httpx.Response(int(status), json=self._example(schema["$ref"]))

    def _example(self, reference: str) -> Any:
        name = reference.rpartition("/")[2]
        example = json.loads(json.dumps(self._document["components"]["schemas"][name]["examples"][0]))
        if name == "FileOut":
            example["sha256"] = SHA256
        if name == "ArtifactOut":
            example["files"] = [{"name": "weights", "bytes": len(CONTENT), "sha256": SHA256}]
            example["manifest_sha256"] = hashlib.sha256(b"{}").hexdigest()
        return example

    def _find(self, request: httpx.Request) -> str:
        """The operation whose path this is; of several the one with the fewest parameters."""
        given = request.url.path.split("/")
        fitting = []
        for operation in self._operations:
            method, path = operation.split()
            parts = path.split("/")
            same = len(parts) == len(given) and all(
                part == there or part.startswith("{") for part, there in zip(parts, given, strict=True)
            )
            if same and method == request.method:
                fitting.append(operation)
        assert fitting, f"the service has no {request.method} {request.url.path}"
        return min(fitting, key=lambda operation: operation.count("{"))


@pytest.fixture
def recorded(document: dict[str, Any]) -> Recorded:
    return Recorded(document)


@pytest.fixture
def client(recorded: Recorded) -> Client:
    return Client("http://service", transport=httpx.MockTransport(recorded))


def test_every_endpoint_has_a_method(document: dict[str, Any]) -> None:
    missing = set(operations(document)) - set(METHODS)
    assert not missing, "give minillm.Client a method for each, and add it here"


def test_every_method_has_an_endpoint(document: dict[str, Any]) -> None:
    assert not set(METHODS) - set(operations(document))


@pytest.mark.parametrize("operation", METHODS)
def test_the_method_asks_for_it_and_understands_the_answer(
    operation: str, recorded: Recorded, client: Client, document: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    answers = METHODS[operation](client, tmp_path)
    requests = [request for name, request in recorded.seen if name == operation]
    assert requests
    described = operations(document)[operation].get("parameters", [])
    known = {one["name"] for one in described if one["in"] == "query"}
    assert {name.partition("[")[0] for request in requests for name in request.url.params} <= known
    for answer in answers if isinstance(answers, list | tuple) else [answers]:
        for one in answer if isinstance(answer, list) else [answer]:
            if isinstance(one, Answer):
                assert isinstance(one.raw, dict)
                declared = type(one).model_fields.keys()
                assert declared <= one.raw.keys(), "the client knows a field that the service does not send"
