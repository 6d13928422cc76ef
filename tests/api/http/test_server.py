"""Requests that never get complete, over real sockets: each is ended, nobody else notices, slow ones are waited for."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.app import create_app
from api.http.server import server_config, with_deadline
from store.settings import Settings
from tests.fixtures.server import ServerThread

PROTOCOLS = ["h11", "httptools"] if importlib.util.find_spec("httptools") else ["h11"]
SECONDS = 1.0
PATIENCE = 60.0
UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
HALVES = [
    b"",
    b"G",
    b"GET /v1/jobs HTTP/1.1\r\n",
    b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Long: ",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    UPLOAD + b'Content-Length: 100000\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n',
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHo",
]


@pytest.fixture(params=PROTOCOLS)
def address(request: pytest.FixtureRequest, make_settings: Callable[..., Settings]) -> Iterator[tuple[str, int]]:
    if request.param == "h11":
        from uvicorn.protocols.http.h11_impl import H11Protocol as protocol
    else:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as protocol  # type: ignore[assignment]
    settings = make_settings(request_timeout_seconds=SECONDS, allowed_hosts=())
    config = functools.partial(server_config, settings=settings, http=with_deadline(protocol, SECONDS))
    server = ServerThread(create_app(settings), config)
    server.start()
    found = urlsplit(server.url)
    assert found.hostname is not None and found.port is not None
    yield found.hostname, found.port
    server.stop()


class Connections:
    """Sockets that wait to be closed by the other side; what each was told before."""

    def __init__(self) -> None:
        self._open = selectors.DefaultSelector()
        self.told: dict[socket.socket, bytes] = {}

    def add(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._open.register(connection, selectors.EVENT_READ)
        self.told[connection] = b""

    def closed(self, seconds: float) -> bool:
        """Whether all have been closed within so many seconds."""
        until = time.monotonic() + seconds
        while self._open.get_map() and time.monotonic() < until:
            for key, _ in self._open.select(0.1):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                try:
                    said = connection.recv(65536)
                except ConnectionError:
                    said = b""
                self.told[connection] += said
                if not said:
                    self._open.unregister(connection)
                    connection.close()
        return not self._open.get_map()


def answers(address: tuple[str, int]) -> bool:
    return httpx.get(f"http://{address[0]}:{address[1]}/healthz", timeout=30).status_code == 200


def test_half_requests_are_ended_and_hold_nobody_up(address: tuple[str, int]) -> None:
    connections = Connections()
    sent: dict[socket.socket, bytes] = {}
    for number in range(900):
        connection = socket.create_connection(address)
        half = HALVES[number % len(HALVES)]
        connection.sendall(half)
        sent[connection] = half
        connections.add(connection)
    assert answers(address)
    assert connections.closed(PATIENCE)
    assert answers(address)
    for connection, told in connections.told.items():
        if sent[connection] == HALVES[-1]:
            assert told.startswith(b"HTTP/1.1 200 ")  # what came with it; the rest is a connection that falls idle
            continue
        assert told.startswith(b"HTTP/1.1 408 "), (sent[connection], told)
        assert json.loads(told.partition(b"\r\n\r\n")[2])["code"] == "request_timeout"


@pytest.mark.parametrize("half", [HALVES[3], HALVES[4], HALVES[6]], ids=["head", "body", "upload"])
def test_a_byte_now_and_then_keeps_nothing_open(address: tuple[str, int], half: bytes) -> None:
    connections = Connections()
    connection = socket.create_connection(address)
    connection.sendall(half)
    connections.add(connection)
    until = time.monotonic() + PATIENCE
    while not connections.closed(0.1) and time.monotonic() < until:
        with contextlib.suppress(OSError):
            connection.send(b"x")
    assert connections.closed(0) and b" 408 " in connections.told[connection]


def test_a_slow_upload_is_not_cut(address: tuple[str, int]) -> None:
    row = b'{"instruction": "say it", "output": "' + b"x" * 900 + b'"}\n'
    head, tail = HALVES[6].partition(b"\r\n\r\n")[2], b"\r\n--b--\r\n"
    length = str(len(head) + 30 * len(row) + len(tail)).encode()
    with socket.create_connection(address) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(UPLOAD + b"Content-Length: " + length + b"\r\n\r\n" + head)
        for _ in range(30):
            time.sleep(SECONDS / 10)
            connection.sendall(row)
        connection.sendall(tail)
        assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize("piece", [20_000, 40_000, 100_000])
def test_an_upload_in_any_pieces_is_taken(address: tuple[str, int], piece: int) -> None:
    """Also where the last piece of a body of many ends it."""
    row = b'{"instruction": "say it", "output": "' + b"x" * 900 + b'"}\n'
    content = HALVES[6].partition(b"\r\n\r\n")[2] + 95 * row + b"\r\n--b--\r\n"
    with socket.create_connection(address) as connection:
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(UPLOAD + b"Content-Length: " + str(len(content)).encode() + b"\r\n\r\n")
        for start in range(0, len(content), piece):
            time.sleep(0.02)
            connection.sendall(content[start : start + piece])
        assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")


def test_who_waits_to_be_asked_for_the_body_is_not_hurried() -> None:
    """An app that takes long to ask (here: twice the time) is no fault of the caller's."""
    asked = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        import asyncio

        if scope["type"] != "http":
            return
        await asyncio.sleep(2 * SECONDS)
        asked.set()
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": body})

    config = functools.partial(server_config, settings=Settings(request_timeout_seconds=SECONDS), lifespan="off")
    server = ServerThread(app, config)
    server.start()
    found = urlsplit(server.url)
    try:
        with socket.create_connection((found.hostname, found.port)) as connection:  # type: ignore[arg-type]
            connection.settimeout(PATIENCE)
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ") and asked.is_set()
            connection.sendall(b"body")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    finally:
        server.stop()
