"""Events as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import anyio.to_thread

from api.events.schemas import EventOut
from store.db.tables import Event

POLL_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 15.0

Read = Callable[[int], tuple[Sequence[Event], bool]]
"""Events after a sequence number, and whether none may come after them."""


async def event_stream(read: Read, after: int) -> AsyncIterator[bytes]:
    """Every event after `after` as it comes, to the job's end; the id of each is its sequence number.

    A comment every few seconds keeps proxies from closing a quiet stream.
    """
    quiet_since = time.monotonic()
    yield f"retry: {int(POLL_SECONDS * 1000)}\n\n".encode()
    while True:
        events, ended = await anyio.to_thread.run_sync(read, after)
        for event in events:
            data = EventOut.model_validate(event).model_dump_json()
            yield f"event: {event.type}\nid: {event.seq}\ndata: {data}\n\n".encode()
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
