"""Events as server-sent events, and metrics as CSV or JSONL."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

import anyio.to_thread

from api.history.schemas import EventOut, MetricOut

POLL_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 15.0

EVENT_STREAM = "text/event-stream"
CSV = "text/csv"
JSONL = "application/jsonl"


def accepted(header: str | None, offered: Sequence[str]) -> str | None:
    """The first of `offered` media types that an Accept header wants most (RFC 9110, 12.5.1), or None.

    Without a header, or among equals, the earlier offer wins.
    """
    if not header:
        return offered[0]
    best: tuple[float, str | None] = (0.0, None)
    wanted = []
    for part in header.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights = [piece.removeprefix("q=") for piece in parameters if piece.startswith("q=")]
        try:
            wanted.append((media, float(weights[0]) if weights else 1.0))
        except ValueError:
            wanted.append((media, 0.0))
    for offer in offered:
        family = offer.split("/")[0] + "/*"
        # The most specific match decides.
        for pattern in (offer, family, "*/*"):
            weights_of = [weight for media, weight in wanted if media == pattern]
            if weights_of:
                if weights_of[0] > best[0]:
                    best = (weights_of[0], offer)
                break
    return best[1]


Read = Callable[[int], tuple[list[EventOut], bool]]
"""Events after a sequence number, and whether any more may ever come."""


async def event_stream(read: Read, after: int) -> AsyncIterator[bytes]:
    """Every event after `after` as it comes, to the job's end; the id of each is its sequence number.

    A comment every few seconds keeps proxies from closing a quiet stream.
    """
    quiet_since = time.monotonic()
    yield f"retry: {int(POLL_SECONDS * 1000)}\n\n".encode()
    while True:
        events, ended = await anyio.to_thread.run_sync(read, after)
        for event in events:
            yield f"event: {event.type}\nid: {event.seq}\ndata: {event.model_dump_json()}\n\n".encode()
            after = event.seq
        if events:
            quiet_since = time.monotonic()
            continue
        if ended:
            return
        if time.monotonic() - quiet_since >= KEEP_ALIVE_SECONDS:
            yield b": still here\n\n"
            quiet_since = time.monotonic()
        await asyncio.sleep(POLL_SECONDS)


def metrics_jsonl(points: Iterable[MetricOut]) -> Iterator[bytes]:
    for point in points:
        yield point.model_dump_json().encode() + b"\n"


def metrics_csv(points: Iterable[MetricOut], names: Sequence[str]) -> Iterator[bytes]:
    """One column a metric; empty where a step has no such value."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(["attempt", "phase", "step", "created_at", *(_inert(name) for name in names)])
    for point in points:
        values = [json.dumps(point.values[name]) if name in point.values else "" for name in names]
        writer.writerow([point.attempt, point.phase, point.step, point.created_at.isoformat(), *values])
        if buffer.tell() > 1 << 16:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()


def _inert(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
