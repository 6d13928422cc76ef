"""The trainer's output, by bytes from the run folder, else the tail that the store keeps of a failed attempt."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from store.db.printable import printable

Stream = Literal["stdout", "stderr"]

_CHUNK_BYTES = 1 << 20
# C0 but tab and newline, DEL, and C1 in UTF-8: what drives terminals.
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")


@dataclass(frozen=True)
class LogSource:
    """The bytes of one log as they are at this moment."""

    kind: Literal["file", "store"]
    size: int
    path: Path | None = None
    tail: bytes = b""

    def read(self, start: int, stop: int) -> bytes:
        if self.path is None:
            return self.tail[start:stop]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(max(0, stop - start))

    def inert(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes with spaces where control characters were, so that every offset stays true."""
        while start < stop and (chunk := self.read(start, min(stop, start + _CHUNK_BYTES))):
            start += len(chunk)
            yield _CONTROL.sub(lambda match: b" " * len(match.group()), chunk)


def log_source(path: Path, tail: str | None) -> LogSource:
    """The file where this machine has it, else the tail of the store, which may be empty."""
    try:
        return LogSource("file", path.stat().st_size, path)
    except FileNotFoundError:
        kept = (tail or "").encode()
        return LogSource("store", len(kept), None, kept)


@dataclass(frozen=True)
class LogPiece:
    text: str
    """Without escape sequences and control characters."""
    offset: int
    next_offset: int
    """Where to read on: never inside a character."""


def log_piece(source: LogSource, offset: int, limit: int) -> LogPiece:
    """At most `limit` bytes from byte `offset` on; a negative offset counts from the end.

    A log that was rotated is shorter than an old offset: reading then starts over at its beginning.
    """
    start = max(0, source.size + offset) if offset < 0 else offset
    if start > source.size:
        start = 0
    raw = source.read(start, start + limit)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = decoder.decode(raw)
    pending = len(decoder.getstate()[0])
    if pending == len(raw):
        # Nothing but the beginning of a character: take it as it is rather than stand still.
        text, pending = raw.decode("utf-8", errors="replace"), 0
    return LogPiece(text=printable(text), offset=start, next_offset=start + len(raw) - pending)
