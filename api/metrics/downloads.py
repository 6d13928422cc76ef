"""Measurements as CSV or JSONL, written as they are read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence

from api.metrics.schemas import MetricOut
from store.jobs.metrics import StepMetrics

_CHUNK = 1 << 16


def json_lines(points: Iterable[StepMetrics]) -> Iterator[bytes]:
    buffer = bytearray()
    for point in points:
        buffer += MetricOut.model_validate(point).model_dump_json().encode() + b"\n"
        if len(buffer) > _CHUNK:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)


def csv_lines(points: Iterable[StepMetrics], names: Sequence[str]) -> Iterator[bytes]:
    """One column a metric; empty where a step has no such value."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(["attempt", "phase", "step", "created_at", *(_inert(name) for name in names)])
    for point in points:
        values = [json.dumps(point.values[name]) if name in point.values else "" for name in names]
        writer.writerow([point.attempt, point.phase, point.step, point.created_at.isoformat(), *values])
        if buffer.tell() > _CHUNK:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()


def _inert(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
