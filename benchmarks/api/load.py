"""A closed loop of HTTP/1.1 clients on as few cycles as Python can do it with, so that the server is what is measured.

    python -m benchmarks.api.load < plan.json

The plan: `{host, port, clients, seconds, requests, expected}`; `requests` are whole requests as text, which each
client sends in turn, beginning at another place; `expected` the status of a good answer. The answer is one JSON line:
`{requests, seconds, errors, latencies}` with latencies in seconds, of at most 20,000 requests.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

_LATENCIES_KEPT = 20_000
_END = b"\r\n\r\n"
_LENGTH = b"content-length: "


class _Clients:
    """What the clients of one run share."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.requests: list[bytes] = [request.encode() for request in plan["requests"]]
        self.expected = str(plan["expected"]).encode()
        self.latencies: list[float] = []
        self.errors = 0
        self.until = 0.0
        self.left = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave(self) -> None:
        self.left -= 1
        if self.left == 0 and not self.done.done():
            self.done.set_result(None)


class _Client(asyncio.Protocol):
    def __init__(self, clients: _Clients, place: int) -> None:
        self._clients = clients
        self._next = place
        self._buffer = b""
        self._needed = 0
        self._sent_at = 0.0
        self._at_work = False
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self) -> None:
        self._at_work = True
        self._sent_at = time.perf_counter()
        self._transport.write(self._clients.requests[self._next % len(self._clients.requests)])
        self._next += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._needed:
            head_end = self._buffer.find(_END)
            if head_end < 0:
                return
            head = self._buffer[:head_end].lower()
            at = head.find(_LENGTH)
            length = 0 if at < 0 else int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
            bodiless = head[9:12] in (b"304", b"204")
            self._needed = head_end + len(_END) + (0 if bodiless else length)
        if len(self._buffer) < self._needed:
            return
        now = time.perf_counter()
        clients = self._clients
        clients.latencies.append(now - self._sent_at)
        if self._buffer[9:12] != clients.expected:
            clients.errors += 1
        self._buffer = self._buffer[self._needed :]
        self._needed = 0
        self._at_work = False
        if now < clients.until:
            self.send()
        else:
            clients.leave()

    def connection_lost(self, _: Exception | None) -> None:
        if self._at_work:
            self._clients.errors += 1
            self._clients.leave()


async def _run(plan: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    clients = _Clients(plan)
    protocols = []
    for number in range(plan["clients"]):
        place = number * len(clients.requests) // plan["clients"]
        _, protocol = await loop.create_connection(
            lambda place=place: _Client(clients, place), plan["host"], plan["port"]
        )
        protocols.append(protocol)
    begin = time.perf_counter()
    clients.until = begin + plan["seconds"]
    clients.left = len(protocols)
    for protocol in protocols:
        protocol.send()
    await clients.done
    seconds = time.perf_counter() - begin
    count = len(clients.latencies)
    kept = sorted(clients.latencies)[:: max(1, -(-count // _LATENCIES_KEPT))]
    worst = max(clients.latencies, default=0.0)
    return {"requests": count, "seconds": seconds, "errors": clients.errors, "latencies": kept, "worst": worst}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_run(json.load(sys.stdin)))))
