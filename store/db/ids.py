"""Ids: a prefix and a ULID in lower case, sortable by time, valid as cursors, not enumerable.

Layout after the ULID specification: 48 bits of milliseconds, 80 random bits, Crockford base 32.
"""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Literal

Prefix = Literal["job", "file", "model", "ckpt", "att", "evt", "art", "key", "wrk"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 80
_ID = re.compile(r"([a-z]+)_[0-9a-z]{26}")

_lock = threading.Lock()
_last = 0


def _next_ulid() -> int:
    """A 128-bit ULID above every one this process made before, also within one millisecond."""
    global _last
    fresh = ((time.time_ns() // 1_000_000) << _RANDOM_BITS) | int.from_bytes(os.urandom(10), "big")
    with _lock:
        # Within one millisecond, or when the clock steps back, a random stride above the last id
        # keeps the order without making the next one guessable.
        if fresh >> _RANDOM_BITS <= _last >> _RANDOM_BITS:
            fresh = _last + 1 + int.from_bytes(os.urandom(8), "big")
        _last = fresh
        return fresh


def new_id(prefix: Prefix) -> str:
    """``"<prefix>_<26 characters>"``; later calls of one process sort after earlier ones."""
    value = _next_ulid()
    return prefix + "_" + "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def is_id(text: str, prefix: Prefix) -> bool:
    """Whether the text may be an id that :func:`new_id` made for ``prefix``."""
    match = _ID.fullmatch(text)
    return match is not None and match[1] == prefix


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
