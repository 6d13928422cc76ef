"""Text from processes and users, made safe to keep and to show."""

from __future__ import annotations

import re
from typing import Any

LOG_TAIL_BYTES = 64 * 1024

# C0 but tab and newline, DEL, C1, and lone surrogates: they drive terminals, and PostgreSQL refuses NUL.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPE_SEQUENCE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|[@-Z\\\\-_])")


def printable(text: str) -> str:
    """``text`` without terminal escape sequences and control characters; tabs and line ends stay."""
    return _CONTROL.sub("", _ESCAPE_SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def printable_data(value: Any) -> Any:
    """The same for every text inside a JSON value."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(name)): printable_data(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_data(item) for item in value]
    return value


def log_tail(raw: bytes, limit: int = LOG_TAIL_BYTES) -> str:
    """The last ``limit`` bytes of a log as printable text, begun at a whole line where there is one.

    The result has at most ``limit`` bytes in UTF-8.
    """
    cut = len(raw) > limit
    tail = raw[-limit:]
    if cut and b"\n" in tail[:-1]:
        tail = tail[tail.index(b"\n") + 1 :]
    text = printable(tail.decode("utf-8", errors="replace"))
    encoded = text.encode("utf-8")
    # Each undecodable byte becomes three: cut again rather than exceed the limit.
    return text if len(encoded) <= limit else encoded[-limit:].decode("utf-8", errors="ignore")
