"""The OpenAPI document: operation ids, the errors every operation can answer with, an example of each answer.

The examples lie in `examples/`, one file for each kind of answer, named like its schema: what a service answered.
"""

from __future__ import annotations

import functools
import http
import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import Field

from api.http.intake import MAX_PARAMETER
from api.http.problems import MEDIA_TYPE
from api.http.schema import Out

DESCRIPTION = """
Distils a large language model into a small one: post a teacher, a student and a dataset, watch the
job train with MiniLLM (on-policy reverse-KL distillation, arXiv 2306.08543), download the student.

Every answer that is not a success is `application/problem+json` (RFC 9457) with a stable `code` and
a `param` that points at the field at fault. Lists are `{object, data, has_more, first_id, last_id}`
with ids as cursors. Times are RFC 3339 in UTC. Send `X-Request-Id` to have it echoed.
"""


class FieldErrorOut(Out):
    code: str
    param: str | None
    detail: str


class ProblemOut(Out):
    """An error, after RFC 9457."""

    type: str = Field(examples=["urn:minillm:problem:unknown_field"])
    title: str
    status: int
    detail: str
    instance: str
    """Id of the request, also in the `X-Request-Id` header and in the log."""
    code: str
    """Stable snake_case name."""
    param: str | None
    """JSON pointer into the body, or the name of a query, path or header parameter."""
    errors: list[FieldErrorOut]
    retryable: bool


def operation_id(route: APIRoute) -> str:
    """The endpoint's own name, such as `jobs_create`; unique because a test says so."""
    return route.name


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the error statuses it can answer with."""
    return {status: {"model": ProblemOut} for status in statuses}


@functools.cache
def answers() -> dict[str, Any]:
    """An answer for each schema that has one of its own."""
    files = sorted((Path(__file__).parents[1] / "examples").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def _example(name: str) -> Any:
    """An answer of this schema, None where there is none; a list has one item."""
    if not name.startswith("Page_"):
        return answers().get(name)
    item = answers().get(name.removeprefix("Page_").removesuffix("_"))
    if item is None:
        return None
    cursor = item.get("id")
    return {"object": "list", "data": [item], "has_more": False, "first_id": cursor, "last_id": cursor}


def _common(path: str, operation: dict[str, Any]) -> list[int]:
    """Statuses that the application answers with by itself: unknown parameters, and bodies that are none."""
    known = [421, 422] if path.startswith("/v1/") else [421]
    return [*known, 400, 413, 415] if "requestBody" in operation else known


def _say_longest(schema: dict[str, Any]) -> None:
    """What :mod:`api.http.intake` holds every parameter against that has no length of its own."""
    for branch in (schema, *schema.get("anyOf", ())):
        if branch.get("type") == "string" and "enum" not in branch:
            branch.setdefault("maxLength", MAX_PARAMETER)


def install(app: FastAPI) -> None:
    """Complete the document: the errors that all operations have, their media type, and an example of each answer."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    responses = operation["responses"]
                    for parameter in operation.get("parameters", ()):
                        _say_longest(parameter["schema"])
                    for status in _common(path, operation):
                        responses.setdefault(str(status), {"description": http.HTTPStatus(status).phrase})
                    for status, response in responses.items():
                        if status >= "4":
                            schema = {"$ref": "#/components/schemas/ProblemOut"}
                            response["content"] = {MEDIA_TYPE: {"schema": schema}}
            # The framework's own error shape, which no route answers with.
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
            for name, schema in document["components"]["schemas"].items():
                if (example := _example(name)) is not None:
                    schema["examples"] = [example]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
