"""How a wake-up from the broker reaches the worker: a unix socket between the Celery process and the claim loop.

A task rings with the id that its message carried and waits until the bell is answered, which is when the slot has
looked for work and is free again. So a busy worker takes no further messages from idle ones. Whatever is rung, the
worker claims what the database says comes next: a message is a hint and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import shutil
import socket
import tempfile
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

DOORBELL_VARIABLE = "MINILLM_DOORBELL"
_JOB_ID = re.compile(rb"job_[0-9a-z]{26}\n")
_READ_SECONDS = 5.0


class Doorbell:
    """The listening side; a context manager."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="minillm-"))  # mode 0700: nobody else can ring
        self.path = self._folder / "doorbell"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        # SimpleQueue, because a signal handler puts into it too.
        self._rings: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._answering: socket.socket | None = None
        self._thread = threading.Thread(target=self._accept, name="doorbell", daemon=True)

    def __enter__(self) -> Doorbell:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        # Whoever it is letting in must be in the queue before that is emptied.
        self._thread.join(_READ_SECONDS)
        self.answer()
        while not self._rings.empty():
            ring = self._rings.get()
            if ring is not None:
                ring.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait(self, seconds: float) -> bool:
        """Wait for a ring; whether there was one (it is :meth:`answer` that lets the ringer go)."""
        try:
            self._answering = self._rings.get(timeout=seconds)
        except queue.Empty:
            return False
        return self._answering is not None

    def answer(self) -> None:
        """Let the present ringer go. Without one it does nothing."""
        if self._answering is not None:
            self._answering.close()
            self._answering = None

    def interrupt(self) -> None:
        """End a :meth:`wait` at once; may be called by a signal handler."""
        self._rings.put(None)

    def _accept(self) -> None:
        while True:
            try:
                ring, _ = self._listener.accept()
            except OSError:
                return
            try:
                ring.settimeout(_READ_SECONDS)
                rung = ring.recv(128)
            except OSError:
                rung = b""
            if _JOB_ID.fullmatch(rung):
                self._rings.put(ring)
            else:
                logger.warning("a message that names no job was ignored")
                ring.close()


def ring(path: str, job_id: str) -> None:
    """Ring at `path` and wait for the answer. A worker that is gone is no error: its job is found by another."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bell:
        bell.settimeout(_READ_SECONDS)
        bell.connect(path)
        bell.sendall(job_id.encode(errors="replace")[:100] + b"\n")
        bell.settimeout(None)
        bell.recv(1)
