"""What the trainer says: one JSON line per event, appended to ``RUN_DIR/events.jsonl``.

Only the main rank writes. A line is written with one ``write`` call, so that a reader who follows
the file never sees half of one between two newlines; one that does not fit on the disk is taken back
and raises OSError.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minillm_core.spec import EVENTS_FILE, Failure, Phase
from minillm_core.spec.event_lines import event_line

PROGRESS_INTERVAL_SECONDS = 1.0


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """What has a place in JSON: values that are not finite are left out."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class EventLog:
    """Appends events; continues the numbering of a file that is already there."""

    def __init__(self, run_dir: Path, *, enabled: bool = True) -> None:
        self._path = run_dir / EVENTS_FILE
        self._enabled = enabled
        self._seq = self._last_seq() if enabled else 0
        self._last_progress = -math.inf
        self._file = self._path.open("ab", buffering=0) if enabled else None

    def _last_seq(self) -> int:
        """The last number used; a line cut short by a crash is ended, not continued."""
        if not self._path.exists():
            return 0
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")
        for line in reversed(content.splitlines()):
            try:
                return int(json.loads(line)["seq"])
            except (ValueError, KeyError, TypeError):
                continue
        return 0

    def _write(self, type_: str, fields: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        self._seq += 1
        event = {"seq": self._seq, "time": utc_now(), "type": type_, **fields}
        line = event_line(event)
        written = self._file.write(line)
        if written != len(line):
            # The disk is full: a system call takes what still fits. Half a line would swallow the next one.
            self._file.truncate(self._file.tell() - (written or 0))
            self._file.seek(0, os.SEEK_END)
            self._seq -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def phase(self, phase: Phase, message: str = "") -> None:
        self._write("phase", {"phase": phase, "message": message})

    def progress(
        self,
        phase: Phase,
        *,
        step: int,
        total_steps: int,
        fraction: float,
        tokens_per_second: float | None = None,
        seconds_left: float | None = None,
        force: bool = False,
    ) -> None:
        """At most one line a second unless ``force``: a poller gains nothing from more."""
        now = time.monotonic()
        if not force and now - self._last_progress < PROGRESS_INTERVAL_SECONDS:
            return
        self._last_progress = now
        fields = {"phase": phase, "step": step, "total_steps": total_steps, "fraction": round(fraction, 4)}
        fields["tokens_per_second"] = None if tokens_per_second is None else round(tokens_per_second, 1)
        fields["seconds_left"] = None if seconds_left is None else round(seconds_left, 1)
        self._write("progress", fields)

    def metrics(self, phase: Phase, step: int, values: Mapping[str, float]) -> None:
        """Values that are not finite are left out."""
        self._write("metrics", {"phase": phase, "step": step, "values": finite(values)})

    def checkpoint(
        self,
        phase: Phase,
        step: int,
        *,
        path: str,
        bytes_: int,
        manifest_sha256: str,
        best: bool,
        resumable: bool,
        metrics: Mapping[str, float],
    ) -> None:
        """Values that are not finite are left out."""
        fields = {"phase": phase, "step": step, "path": path, "bytes": bytes_, "manifest_sha256": manifest_sha256}
        self._write("checkpoint", {**fields, "best": best, "resumable": resumable, "metrics": finite(metrics)})

    def checkpoint_removed(self, path: str) -> None:
        self._write("checkpoint_removed", {"path": path})

    def message(self, level: str, code: str, message: str, **data: Any) -> None:
        self._write("message", {"level": level, "code": code, "message": message, "data": data})

    def student(self, **fields: Any) -> None:
        self._write("student", fields)

    def failure(self, failure: Failure) -> None:
        self._write("failure", {"failure": failure.model_dump(mode="json")})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
