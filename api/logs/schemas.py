"""Pieces of a log as they go out."""

from __future__ import annotations

from typing import Literal

from api.http.schema import Out


class LogOut(Out):
    """A piece of an attempt's output. Read on at `next_offset`."""

    object: Literal["job.log"] = "job.log"
    attempt: int
    stream: str
    source: Literal["file", "store"]
    """`store`: the run folder is not on this machine or gone; this is the tail kept of a failed attempt."""
    text: str
    """Without control characters."""
    offset: int
    next_offset: int
    size: int
    """Bytes of the log at this moment."""
