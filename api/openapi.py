"""The OpenAPI document: operation ids, the errors every operation can answer with, the key scheme."""

from __future__ import annotations

import http
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import Field

from api.problems import MEDIA_TYPE
from api.schema import Out

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


def _common(path: str, operation: dict[str, Any]) -> list[int]:
    """Statuses that the application answers with by itself: unknown parameters, and bodies that are none."""
    known = [422] if path.startswith("/v1/") else []
    return [*known, 400, 413, 415] if "requestBody" in operation else known


def install(app: FastAPI) -> None:
    """Give every error response of the document its true media type, and every operation the errors that all have."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    responses = operation["responses"]
                    for status in _common(path, operation):
                        responses.setdefault(str(status), {"description": http.HTTPStatus(status).phrase})
                    for status, response in responses.items():
                        if status >= "4":
                            schema = {"$ref": "#/components/schemas/ProblemOut"}
                            response["content"] = {MEDIA_TYPE: {"schema": schema}}
            # The framework's own error shape, which no route answers with.
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
