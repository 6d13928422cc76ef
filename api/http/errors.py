"""Registers how each kind of exception becomes problem+json."""

from __future__ import annotations

import errno
import logging

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from api.http.problems import (
    Conflict,
    InProgress,
    InsufficientStorage,
    Invalid,
    NotFound,
    Problem,
    QuotaExceeded,
    Unavailable,
    problem_response,
)
from api.http.validation import validation_problem
from store.db import errors as store_errors
from store.db.database import DATABASE_AWAY
from store.quotas import QUEUED_JOBS, STORED_BYTES

log = logging.getLogger(__name__)


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        error.headers = {**(error.headers or {}), "Allow": ", ".join(_allowed(request))}
    return problem_response(request.scope, error)


def _allowed(request: Request) -> list[str]:
    """Every method that the path answers to; the framework names those of the first route of the path alone."""
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    media_type = request.headers.get("content-type", "")
    return problem_response(request.scope, validation_problem(error.errors(), error.body, media_type=media_type))


def _store(request: Request, error: Exception) -> Response:
    problem: Problem
    if isinstance(error, store_errors.NotFound):
        problem = NotFound(f"There is no {error.kind.replace('_', ' ')} {error.id!r}.")
    elif isinstance(error, store_errors.Conflict):
        problem = Conflict(_sentence(error), code=error.code)
    elif isinstance(error, store_errors.QuotaExceeded):
        unit, retry_after = _QUOTAS[error.policy]
        problem = QuotaExceeded(
            _sentence(error), policy=error.policy, limit=error.limit, unit=unit, retry_after=retry_after
        )
    elif isinstance(error, store_errors.IdempotencyMismatch):
        problem = Invalid(_sentence(error), code="idempotency_key_reused", param="Idempotency-Key")
    elif isinstance(error, store_errors.IdempotencyInProgress):
        problem = InProgress(_sentence(error), code="idempotency_in_progress")
    else:
        return _unexpected(request, error)
    return problem_response(request.scope, problem)


# What a quota counts, and seconds after which asking again may be of use.
_QUOTAS = {QUEUED_JOBS: ("requests", 30), STORED_BYTES: ("content-bytes", 300)}


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + "."


def _database(request: Request, error: Exception) -> Response:
    log.error("database unavailable: %s", error)
    problem = Unavailable("The database does not answer just now; nothing was changed.", code="database_unavailable")
    return problem_response(request.scope, problem)


def _operating_system(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("no space left: %s", error)
        return problem_response(request.scope, InsufficientStorage("There is no space left on the server's disk."))
    return _unexpected(request, error)


def _unexpected(request: Request, error: Exception) -> Response:
    log.error("the request failed", exc_info=error)
    return problem_response(
        request.scope,
        Problem("An error of the service, not of the request. The log has it under this request id."),
    )


def install(app: FastAPI) -> None:
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(store_errors.StoreError, _store)
    for away in DATABASE_AWAY:
        app.add_exception_handler(away, _database)
    app.add_exception_handler(OSError, _operating_system)
    app.add_exception_handler(Exception, _unexpected)
