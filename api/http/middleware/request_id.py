"""Gives each request an id, taken from `X-Request-Id` where the caller sends a sane one, and echoes it.

It is bound for the log, so that every line of the request has it, beside the id of the job that the path names, and
the request itself becomes one line.
"""

from __future__ import annotations

import logging
import re
import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
# What may go into logs and response headers untouched.
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_JOB = re.compile(r"/v1/jobs/(job_[0-9a-z]{26})(?:/|$)")
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: their lines are for DEBUG."""

log = logging.getLogger("api.requests")


class RequestIdMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _SANE.fullmatch(given) else f"req_{secrets.token_hex(13)}"
        scope.setdefault("state", {})["request_id"] = request_id
        # The server runs each request in a context of its own: nothing has to be unbound.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        if (job := _JOB.match(scope["path"])) is not None:
            structlog.contextvars.bind_contextvars(job_id=job[1])
        begin = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            log.log(
                logging.DEBUG if scope["path"] in _PROBES else logging.INFO,
                "request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "milliseconds": round((time.perf_counter() - begin) * 1000, 1),
                },
            )
