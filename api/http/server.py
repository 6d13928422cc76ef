"""How the app is served: uvicorn, with an end to requests that never get complete.

uvicorn itself waits for ever for the rest of a request. Here its head must be whole within `request_timeout_seconds`
of its first byte (of the connection, for the first), and its body within as long again and a second for each
`SLOWEST_BYTES_PER_SECOND` that arrived: so one byte now and then keeps nothing open, and an upload over a slow line is
never cut. Time in which the service itself does not read does not count.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from api.http.problems import MEDIA_TYPE, FieldError, problem_body
from store.settings import Settings

SLOWEST_BYTES_PER_SECOND = 500
LARGEST_HEAD_BYTES = 64 * 1024
# Long enough for a download's current chunk, short enough for event streams not to hold up a deploy.
_SHUTDOWN_SECONDS = 5


def server_config(app: Any, settings: Settings, **given: Any) -> uvicorn.Config:
    """What `python -m api` and every measurement of it run with."""
    return uvicorn.Config(
        app,
        **{
            "host": settings.host,
            "port": settings.port,
            "http": with_deadline(AutoHTTPProtocol, settings.request_timeout_seconds),
            "ws": "none",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "timeout_graceful_shutdown": _SHUTDOWN_SECONDS,
            **given,
        },
    )


def with_deadline(protocol: Any, seconds: float) -> type[asyncio.Protocol]:
    """A protocol class of uvicorn whose connections end where a request is not complete in time.

    Of the protocol it uses what uvicorn's h11 and httptools have in common: `loop`, `transport`, `flow` and `cycle`,
    the newest request whose head is whole.
    """

    class Deadline(protocol):  # type: ignore[misc]
        _timer: asyncio.TimerHandle | None = None
        _since = 0.0
        _received = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            before, of_body = self.cycle, self._in_body
            if self._timer is None:
                self._wait()
            super().data_received(data)
            if self.cycle is not before:
                # A whole head has come: the body has a time of its own.
                self._since = self.loop.time()
                self._received = 0
            elif self._timer is not None:
                self._received += len(data)
                # The end of a body has its bytes behind it too, and is no head.
                if self._received > LARGEST_HEAD_BYTES and not of_body:
                    self._close()
            if self._complete:
                self._stop_waiting()

        def connection_lost(self, error: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(error)

        @property
        def _in_body(self) -> bool:
            return self.cycle is not None and self.cycle.more_body

        @property
        def _complete(self) -> bool:
            """Whether there is a whole request that is at work: what is read now is none of ours to wait for."""
            return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

        def _wait(self) -> None:
            self._since = self.loop.time()
            self._received = 0
            self._timer = self.loop.call_later(seconds, self._look)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _look(self) -> None:
            self._timer = None
            if self.transport.is_closing() or self._complete:
                return
            now = self.loop.time()
            if self._waits_for_us:
                self._since = now
            until = self._since + seconds
            if self._in_body:
                until += self._received / SLOWEST_BYTES_PER_SECOND
            if now < until:
                self._timer = self.loop.call_later(until - now, self._look)
            else:
                self._close()

        @property
        def _waits_for_us(self) -> bool:
            asked_to_wait = self._in_body and self.cycle.waiting_for_100_continue and not self.cycle.response_complete
            return self.flow.read_paused or asked_to_wait

        def _close(self) -> None:
            if not self._in_body or not self.cycle.response_started:
                self.transport.write(_TIMED_OUT)
            self.transport.close()

    return Deadline


def _timed_out() -> bytes:
    detail = "The request was not complete in time. Send it again."
    body = problem_body(
        status=408,
        code="request_timeout",
        detail=detail,
        instance="",
        errors=[FieldError("request_timeout", None, detail)],
        retryable=True,
    )
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + content


_TIMED_OUT = _timed_out()
