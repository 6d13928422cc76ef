"""The trainer's output, by bytes from the run folder, else the tail that the store keeps of a failed attempt.

The server's folders are left out of what is shown (:mod:`store.server_paths`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy.orm import Session

from api.http.problems import NotFound
from api.services import Services
from store.bytes.runs import Stream
from store.db.printable import printable
from store.db.tables import Job
from store.jobs.repository import JobRepository
from store.server_paths import LONGEST_PATH, ServerPaths

CHUNK_BYTES = 1 << 20
# C0 but tab and newline, DEL, and C1 in UTF-8: what drives terminals.
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")


@dataclass(frozen=True)
class Log:
    """The output of one attempt as it is at this moment."""

    attempt: int
    stream: Stream
    size: int
    """In bytes."""
    paths: ServerPaths
    path: Path | None = None
    tail: bytes = b""

    def read(self, start: int, stop: int) -> bytes:
        """The bytes, with NULs where folders of the server were: a path is known by what is around it too."""
        begin = max(0, start - LONGEST_PATH)
        raw = self.paths.blanked(self._raw(begin, stop + LONGEST_PATH))
        return raw[start - begin : max(start, stop) - begin]

    def _raw(self, start: int, stop: int) -> bytes:
        if self.path is None:
            return self.tail[start:stop]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def inert(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes with spaces where control characters were, so that every offset stays true."""
        while start < stop and (chunk := self.read(start, min(stop, start + CHUNK_BYTES))):
            start += len(chunk)
            yield _CONTROL.sub(lambda match: b" " * len(match.group()), chunk)


def log_of(session: Session, services: Services, job: Job, attempt: int | None, stream: Stream) -> Log:
    """Of the newest attempt for None: the file where this machine has it, else the tail of the store, maybe empty.

    Raises NotFound for an attempt that never was.
    """
    number = attempt if attempt is not None else job.attempt
    if number == 0:
        raise NotFound("The job has not started: there is no log yet.", code="no_log")
    row = JobRepository(session).attempt(job, number)
    path = services.settings.runs.attempt(job.id, number).log(stream)
    try:
        return Log(number, stream, path.stat().st_size, services.paths, path)
    except FileNotFoundError:
        kept = (row.log_tail or "").encode()
        return Log(number, stream, len(kept), services.paths, None, kept)


@dataclass(frozen=True)
class Piece:
    """A part of a log that a person can read."""

    attempt: int
    stream: Stream
    source: Literal["file", "store"]
    text: str
    """Without escape sequences and control characters."""
    offset: int
    next_offset: int
    """Where to read on: never inside a character."""
    size: int


def piece_of(log: Log, offset: int) -> Piece:
    """At most a MiB from byte `offset` on; a negative offset counts from the end.

    A log that was rotated is shorter than an old offset: reading then starts over at its beginning.
    """
    start = max(0, log.size + offset) if offset < 0 else offset
    if start > log.size:
        start = 0
    raw = log.read(start, start + CHUNK_BYTES)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = decoder.decode(raw)
    pending = len(decoder.getstate()[0])
    if pending == len(raw):
        # Nothing but the beginning of a character: take it as it is rather than stand still.
        text, pending = raw.decode("utf-8", errors="replace"), 0
    return Piece(
        attempt=log.attempt,
        stream=log.stream,
        source="store" if log.path is None else "file",
        text=printable(text),
        offset=start,
        next_offset=start + len(raw) - pending,
        size=log.size,
    )
