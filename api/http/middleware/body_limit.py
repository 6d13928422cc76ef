"""Refuses request bodies over a limit: at once by Content-Length, else by counting what arrives.

The framework's own limiter answers in plain text where the endpoint never reads the body, and every
error here is problem+json; so the count is ours.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import TooLarge, problem_response

# Boundary lines and part headers of a multipart body around the file itself.
MULTIPART_ALLOWANCE = 64 * 1024


class BodyLimitMiddleware:
    """`upload_path` takes files of up to `max_file_bytes`; every other path up to `max_body_bytes`."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, upload_path: str, max_file_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.upload_path = upload_path
        self.max_file_bytes = max_file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"].rstrip("/") == self.upload_path:
            limit = self.max_file_bytes + MULTIPART_ALLOWANCE
            problem = file_too_large(self.max_file_bytes)
        else:
            limit = self.max_body_bytes
            problem = TooLarge(f"The request body is over the limit of {limit:,} bytes.", code="request_too_large")

        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
            problem.headers = {**(problem.headers or {}), "Connection": "close"}
            await problem_response(scope, problem)(scope, receive, send)
            return

        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise problem
            return message

        await self.app(scope, counted, send)


def file_too_large(max_file_bytes: int) -> TooLarge:
    return TooLarge(
        f"The file is over the limit of {max_file_bytes:,} bytes. Split it, or raise MINILLM_MAX_FILE_BYTES.",
        code="file_too_large",
        param="/file",
    )
