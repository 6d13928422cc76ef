"""The OpenAPI document says the truth, and every route keeps the house's rules."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from api.app import create_app
from api.artifacts.endpoints import router as artifacts
from api.attempts.endpoints import router as attempts
from api.checkpoints import examples as checkpoint_examples
from api.checkpoints.endpoints import router as checkpoints
from api.checkpoints.schemas import CheckpointPatch
from api.deps import write_session
from api.events.endpoints import router as events
from api.files.endpoints import router as files
from api.health.endpoints import router as health
from api.http.openapi import ProblemOut, answers
from api.http.problems import MEDIA_TYPE
from api.jobs import examples
from api.jobs.endpoints import router as jobs
from api.jobs.schemas import CancelIn, DryRun, ForkIn, JobPatch, RetryIn
from api.keys.endpoints import router as keys
from api.logs.endpoints import router as logs
from api.metrics.endpoints import router as metrics
from api.models.endpoints import router as models
from api.workers.endpoints import router as workers
from minillm_core.spec import JobSpec
from store.settings import Settings

ROUTERS = (health, files, models, jobs, events, metrics, logs, attempts, checkpoints, artifacts, keys, workers)
ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Of an app that never connects to anything."""
    return create_app(Settings(database_url="postgresql://nobody@127.0.0.1:1/none")).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_every_route_is_in_the_document(document: dict[str, Any]) -> None:
    assert {route.path.replace(":path", "") for route in ROUTES} == set(document["paths"])


def test_operation_ids(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(id.isidentifier() and "_" in id for id in ids)


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation["summary"] and operation["tags"], name


def test_every_body_has_an_example(document: dict[str, Any]) -> None:
    bodies = 0
    for name, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            bodies += 1
            assert content.get("examples") or content.get("example"), name
    assert bodies == 8


@pytest.mark.parametrize(
    ("type_", "shown"),
    [
        (JobSpec, examples.CREATE),
        (CancelIn, examples.CANCEL),
        (RetryIn, examples.RETRY),
        (ForkIn, examples.FORK),
        (JobPatch, examples.PATCH),
        (CheckpointPatch, checkpoint_examples.PATCH),
    ],
)
def test_examples_are_valid(type_: Any, shown: dict[str, Any]) -> None:
    for example in shown.values():
        TypeAdapter(type_).validate_python(example["value"])


def test_every_answer_has_an_example_that_is_one(document: dict[str, Any]) -> None:
    """Read and written again by the model of the answer it stays what it is: nothing is missing, nothing unknown."""
    schemas = document["components"]["schemas"]
    seen = set()
    models = {ProblemOut, DryRun, *(route.response_model for route in ROUTES if inspect.isclass(route.response_model))}
    for model in models:
        name = model.__name__.replace("[", "_").replace("]", "_")
        (example,) = schemas[name]["examples"]
        assert model.model_validate(example).model_dump(mode="json", by_alias=True) == example, name
        seen.add(name)
    assert {"JobOut", "ProblemOut", "Page_EventOut_"} <= seen
    answered = {
        content["schema"]["$ref"].rpartition("/")[2]
        for _, operation in operations(document)
        for response in operation["responses"].values()
        for content in response.get("content", {}).values()
        if "$ref" in content.get("schema", {})
    }
    assert answered <= seen


def test_every_example_of_an_answer_is_shown(document: dict[str, Any]) -> None:
    assert set(answers()) <= set(document["components"]["schemas"])


def test_errors_are_problems(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "4":
                assert set(response["content"]) == {MEDIA_TYPE}, f"{name} {status}"
        if name.split()[1] not in ("/healthz", "/readyz"):
            assert "401" in operation["responses"], name


def test_what_the_application_itself_refuses_is_documented(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        if name.split()[1].startswith("/v1/"):
            assert "422" in operation["responses"], name
        if "requestBody" in operation:
            assert {"400", "413", "415", "422"} <= operation["responses"].keys(), name


def test_answers_have_no_optional_fields(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["JobOut"]
    assert set(schema["required"]) == set(schema["properties"])


def dependencies(dependant: Any) -> Iterator[Any]:
    for inner in dependant.dependencies:
        yield inner.call
        yield from dependencies(inner)


def test_reading_opens_no_write_session() -> None:
    for route in ROUTES:
        if route.methods <= {"GET", "HEAD"}:
            assert write_session not in set(dependencies(route.dependant)), route.path


def test_endpoints_are_synchronous() -> None:
    """They call the database: in a coroutine they would hold up every other request."""
    assert [route.path for route in ROUTES if inspect.iscoroutinefunction(route.endpoint)] == []


def test_it_is_served(app: FastAPI, client: TestClient) -> None:
    assert client.get("/openapi.json").json() == app.openapi()
