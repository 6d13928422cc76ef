"""Errors as `application/problem+json` (RFC 9457), for every answer that is not a success.

Beside the RFC's `type`, `title`, `status`, `detail` and `instance` (the request id), each body has

- `code`: a stable snake_case name to program against;
- `param`: the field at fault, a JSON pointer (RFC 6901) into the body, or the bare name of a query,
  path or header parameter; null where no single field is;
- `errors`: the faults found, each `{code, param, detail}`, the first fifty of them;
- `retryable`: whether the same request may succeed later.

An error is a class that carries its status, raised anywhere below an endpoint.
"""

from __future__ import annotations

import http
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

MEDIA_TYPE = "application/problem+json"
MAX_FAULTS = 50
MAX_DETAIL = 1000

_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    409: "conflict",
    412: "precondition_failed",
    413: "request_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    421: "misdirected_request",
    422: "invalid_value",
    428: "precondition_required",
    429: "too_many_requests",
    503: "unavailable",
    507: "insufficient_storage",
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault of a request: `param` as in the module's description."""

    code: str
    param: str | None
    detail: str


class Problem(HTTPException):
    """An answer that is not a success.

    It is an `HTTPException`, so that the framework lets it pass where it reads the body.
    """

    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        param: str | None = None,
        errors: Iterable[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status_code=self.status, detail=detail, headers=dict(headers or {}))
        self.code = code or _CODES.get(self.status, "internal_error")
        self.param = param
        self.errors = list(errors) or [FieldError(self.code, param, detail)]
        self.extensions = dict(extensions or {})


class BadRequest(Problem):
    status = 400


class Unauthorized(Problem):
    status = 401

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="minillm"'})


class Forbidden(Problem):
    status = 403


class NotFound(Problem):
    status = 404


class NotAcceptable(Problem):
    status = 406


class Conflict(Problem):
    """The resource is in a state that refuses the request for good: clients must not repeat it."""

    status = 409

    def __init__(self, detail: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(detail, code=code, param=param, headers={"x-should-retry": "false"})


class InProgress(Problem):
    """Another request is at work on the same thing: repeating this one later is right."""

    status = 409
    retryable = True

    def __init__(self, detail: str, *, code: str) -> None:
        super().__init__(detail, code=code, headers={"Retry-After": "1"})


class PreconditionFailed(Problem):
    status = 412


class TooLarge(Problem):
    status = 413


class UnsupportedMediaType(Problem):
    status = 415


class RangeNotSatisfiable(Problem):
    status = 416


class Misdirected(Problem):
    status = 421


class Invalid(Problem):
    """The payload is understood and wrong."""

    status = 422


class PreconditionRequired(Problem):
    status = 428


class QuotaExceeded(Problem):
    """The caller's owner has as much as one may have; `policy` names the limit.

    The headers are those of draft-ietf-httpapi-ratelimit-headers-10.
    """

    status = 429
    retryable = True

    def __init__(self, detail: str, *, policy: str, limit: int, unit: str, retry_after: int) -> None:
        super().__init__(
            detail,
            code="quota_exceeded",
            headers={
                "Retry-After": str(retry_after),
                # What frees a quota is the owner's to do, or takes as long as jobs run.
                "x-should-retry": "false",
                "RateLimit-Policy": f'"{policy}";q={limit};qu="{unit}"',
                "RateLimit": f'"{policy}";r=0;t={retry_after}',
            },
            extensions={"policy": policy, "limit": limit},
        )


class Unavailable(Problem):
    status = 503
    retryable = True

    def __init__(self, detail: str, *, code: str | None = None, extensions: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail, code=code, headers={"Retry-After": "2"}, extensions=extensions)


class InsufficientStorage(Problem):
    status = 507


def invalid(
    faults: Sequence[FieldError], *, where: bool = False, extensions: Mapping[str, Any] | None = None
) -> Invalid:
    """The problem of all these faults: the first in its detail (``where``: with its field), fifty in its errors."""
    told = [
        fault if len(fault.detail) <= MAX_DETAIL else replace(fault, detail=f"{fault.detail[:MAX_DETAIL]} ...")
        for fault in faults[:MAX_FAULTS]
    ]
    first, *others = told
    more = f" ({len(others)} more in errors)" if others else ""
    if left_out := len(faults) - len(told):
        more = f" ({len(others)} more in errors, and {left_out:,} more)"
    field = f"{first.param}: " if where and first.param else ""
    detail = f"{field}{first.detail}{more}"
    return Invalid(detail, code=first.code, param=first.param, errors=told, extensions=extensions)


def request_id(scope: Scope) -> str:
    """The id of this request: empty only where the request-id middleware has not run."""
    return str(scope.get("state", {}).get("request_id", ""))


def problem_body(
    *,
    status: int,
    code: str,
    detail: str,
    instance: str,
    param: str | None = None,
    errors: Iterable[FieldError] = (),
    retryable: bool = False,
    extensions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "type": f"urn:minillm:problem:{code}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
        "code": code,
        "param": param,
        "errors": [{"code": error.code, "param": error.param, "detail": error.detail} for error in errors],
        "retryable": retryable,
        **(extensions or {}),
    }


def problem_response(scope: Scope, problem: HTTPException) -> Response:
    """The response for one of our problems or for an `HTTPException` of the framework itself."""
    status = problem.status_code
    if isinstance(problem, Problem):
        body = problem_body(
            status=status,
            code=problem.code,
            detail=problem.detail,
            instance=request_id(scope),
            param=problem.param,
            errors=problem.errors,
            retryable=problem.retryable,
            extensions=problem.extensions,
        )
    else:
        code = _CODES.get(status, "internal_error" if status >= 500 else "bad_request")
        if status == 404:
            detail = f"There is nothing at {scope['path'][:200]}; GET /openapi.json describes what there is."
        elif status == 405:
            detail = f"{scope['path'][:200]} does not answer to {scope['method']}."
        else:
            detail = str(problem.detail)
        body = problem_body(
            status=status,
            code=code,
            detail=detail,
            instance=request_id(scope),
            errors=[FieldError(code, None, detail)],
        )
    return Response(
        # What a server may have let through of a path is no reason for an error of ours.
        json.dumps(body, ensure_ascii=False).encode(errors="replace"),
        status_code=status,
        # Also here, for the one answer that is given outside of the request-id middleware: 500.
        headers={**(problem.headers or {}), "X-Request-Id": request_id(scope)},
        media_type=MEDIA_TYPE,
    )
