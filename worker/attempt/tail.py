"""Reading what a trainer writes: its events, line by line as they appear, and the end of its logs.

Both go to the job's owner, so the server's folders are left out of them here.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pydantic import ValidationError

from minillm_core.spec import TrainerEvent, parse_event
from store.bytes.runs import STREAMS, RunFolder
from store.db.printable import LOG_TAIL_BYTES, log_tail
from store.server_paths import ServerPaths

logger = logging.getLogger(__name__)

LONGEST_EVENT_BYTES = 4 << 20
"""A longer line is no event: it is skipped rather than held in memory."""
_BLOCK_BYTES = 1 << 20
LAST_EVENTS_BYTES = 1 << 20
"""More than a worker leaves unrecorded, since it records twice a second."""


class EventTail:
    """The events of one ``events.jsonl``, each given once and in order.

    A line counts once its newline is there, so a half-written one is left for the next call. Lines that are no
    events are skipped and counted in :attr:`malformed`: a trainer's slip must not cost the run.
    """

    def __init__(self, path: Path, paths: ServerPaths) -> None:
        self._path = path
        self._paths = paths
        self._offset = 0
        """Where the first line begins that has not been given."""
        self._skipping = False
        self.malformed = 0

    def read(self, limit: int = 500) -> list[TrainerEvent]:
        """Up to about `limit` new events (whole blocks of 1 MiB are parsed at a time); [] where there is nothing new.

        The file may not exist yet. The beginning of a line is read again with its end: until that is there, a
        trainer whose disk is full may take it back.
        """
        events: list[TrainerEvent] = []
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return events
        with file:
            file.seek(self._offset)
            partial = b""
            while len(events) < limit:
                block = file.read(_BLOCK_BYTES)
                if not block:
                    break
                *lines, partial = (partial + block).split(b"\n")
                for line in lines:
                    self._offset += len(line) + 1
                    event = None if self._skipping else self._parse(line)
                    self._skipping = False
                    if event is not None:
                        events.append(event)
                if len(partial) > LONGEST_EVENT_BYTES or (self._skipping and partial):
                    self._offset += len(partial)
                    self.malformed += not self._skipping
                    partial, self._skipping = b"", True
        return events

    def _parse(self, line: bytes) -> TrainerEvent | None:
        event = _parsed(line, self._path, self._paths)
        if event is None and line.strip():
            self.malformed += 1
        return event


def _parsed(line: bytes, path: Path, paths: ServerPaths) -> TrainerEvent | None:
    """The event of a line; None for an empty one, and for what is no event, which is logged."""
    if not line.strip():
        return None
    try:
        return paths.relative_event(parse_event(line))
    except ValidationError as error:
        logger.warning("%s: a line is no event (%s)", path, error.errors()[0]["msg"])
        return None


def last_events(path: Path, paths: ServerPaths, limit_bytes: int = LAST_EVENTS_BYTES) -> list[TrainerEvent]:
    """The events in the last `limit_bytes` of an ``events.jsonl`` that nobody writes any more; [] without a file."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - limit_bytes)
            file.seek(start)
            lines = file.read().split(b"\n")
    except OSError:
        return []
    # What was cut off, before the first line or after the last newline, is no line.
    whole = lines[1 if start else 0 : -1]
    return [event for line in whole if (event := _parsed(line, path, paths)) is not None]


def _last_bytes(path: Path, count: int) -> bytes:
    """The end of a log and, where that is shorter, of the file rotated out before it."""
    data = b""
    for part in (path, path.with_name(path.name + ".1")):
        missing = count - len(data)
        if missing > 0 and part.is_file():
            with part.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - missing))
                data = file.read() + data
    return data


def attempt_log(run_dir: Path, paths: ServerPaths, limit_bytes: int = LOG_TAIL_BYTES) -> str:
    """The ends of both outputs of an attempt, each under a header, printable, at most `limit_bytes` together."""
    room = limit_bytes - 64  # for the headers
    # One byte more than wanted shows that the start was cut off.
    ends = {name: _last_bytes(RunFolder(run_dir).log(name), room + 1) for name in STREAMS}
    shorter = min(ends.values(), key=len)
    parts = []
    for name, end in ends.items():
        # What one does not need of its half is the other's.
        share = max(room // 2, room - len(shorter)) if end is not shorter else room // 2
        text = paths.relative(log_tail(end, share)).strip("\n")
        if text:
            parts.append(f"==> {name} <==\n{text}\n")
    return "".join(parts)
