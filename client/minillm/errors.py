"""What can go wrong between a caller and the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx


class MinillmError(Exception):
    """Base of every error this package raises on purpose."""


class Unreachable(MinillmError):
    """No answer came: wrong address, service down, or the connection broke too often."""


class DownloadError(MinillmError):
    """The bytes that arrived are not those of the manifest, or cannot be written where they should go."""


class SpecError(MinillmError):
    """A job spec that cannot be sent. `field` is a dotted path such as `dataset.file`; None for the whole."""

    def __init__(self, detail: str, field: str | None = None) -> None:
        super().__init__(detail if field is None else f"{field}: {detail}")
        self.field = field


class ApiError(MinillmError):
    """An answer that is no success: problem+json (RFC 9457) with the extensions `code` and `param`.

    `param` is a JSON pointer (RFC 6901) to the field at fault, `field` the same with dots;
    `errors` holds every fault of the request, `faults` the same as lines to read. `retryable` is whether the same
    request may succeed later, None where the answer does not say, and `retry_after` the seconds that the service asks
    to wait. `problem` is the body as it came, empty where it was no problem.
    """

    def __init__(
        self,
        status: int,
        code: str,
        param: str | None,
        detail: str,
        *,
        errors: list[dict[str, Any]] | None = None,
        request_id: str | None = None,
        retryable: bool | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.param = param
        self.detail = detail
        self.errors = errors or []
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after: float | None = None
        self.problem = dict(problem or {})
        super().__init__("; ".join(self.faults))

    @property
    def field(self) -> str | None:
        return dotted(self.param) if self.param else None

    @property
    def faults(self) -> list[str]:
        """One line for each fault of the request: its field, what is wrong with it, the code."""
        found = self.errors or [{"param": self.param, "detail": self.detail, "code": self.code}]
        lines = []
        for fault in found:
            where = f"{dotted(str(fault['param']))}: " if fault.get("param") else ""
            lines.append(f"{where}{fault.get('detail')} ({fault.get('code')})")
        return lines

    @classmethod
    def of(cls, response: httpx.Response) -> ApiError:
        """The error of a response whose body has been read, whatever that body is (a proxy may answer HTML)."""
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, Mapping):
            body = {}
        detail = body.get("detail") or body.get("title") or response.reason_phrase or "no reason given"
        errors = body.get("errors")
        return cls(
            response.status_code,
            str(body.get("code") or f"http_{response.status_code}"),
            body.get("param") if isinstance(body.get("param"), str) else None,
            str(detail),
            errors=[error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else None,
            request_id=response.headers.get("x-request-id"),
            retryable=body["retryable"] if isinstance(body.get("retryable"), bool) else None,
            problem=body,
        )


def dotted(pointer: str) -> str:
    """`/training/learning_rate` as `training.learning_rate` (RFC 6901 escapes undone)."""
    parts = pointer.lstrip("#").split("/")
    return ".".join(part.replace("~1", "/").replace("~0", "~") for part in parts if part)
