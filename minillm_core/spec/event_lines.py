"""How long one line of ``events.jsonl`` may be, and what is cut where an event would be longer.

A reader holds whole lines in memory and skips those over a limit of its own, so that the writer has one below it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LONGEST_LINE_BYTES = 1 << 20
SAMPLE_CHARACTERS = 4000
"""Of each text of a report's samples: the student's ``report.json`` has them whole."""
_LENGTHS = (1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 7, 1 << 6)
"""Tried one after the other. A sha256 is never cut."""


def shortened(value: Any, longest: int) -> Any:
    """JSON with texts of at most about ``longest`` characters, and as many entries of each list and object."""
    if isinstance(value, str):
        # Cut text says so; a text of a few characters more stays as it is.
        return value if len(value) <= longest + 32 else f"{value[:longest]}... (cut from {len(value)} characters)"
    if isinstance(value, Mapping):
        return {name: shortened(inner, longest) for name, inner in list(value.items())[:longest]}
    if isinstance(value, list | tuple):
        return [shortened(inner, longest) for inner in value[:longest]]
    return value


def event_line(event: Mapping[str, Any], limit: int = LONGEST_LINE_BYTES) -> bytes:
    """The event as a line with its newline, shortened where it is over ``limit`` bytes.

    Raises ValueError where an event of numbers alone is.
    """
    line = _dumped(event)
    for longest in _LENGTHS:
        if len(line) <= limit:
            return line
        line = _dumped(shortened(event, longest))
    if len(line) > limit:
        raise ValueError(f"an event of {len(line)} bytes cannot be shortened to {limit}")
    return line


def _dumped(event: Any) -> bytes:
    # A lone surrogate has no UTF-8: what a message quotes may hold one.
    return (json.dumps(event, ensure_ascii=False) + "\n").encode(errors="replace")
