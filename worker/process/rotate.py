"""Logs that a trainer appends to and that must not fill the disk."""

from __future__ import annotations

import os
from pathlib import Path


def rotate(log: Path, limit_bytes: int) -> bool:
    """Move a log that has outgrown `limit_bytes` to ``<name>.1`` and empty it; whether that was done.

    The trainer appends to the file through its own descriptor, so it is copied and cut rather than renamed; lines
    written in between may be lost, a price for never making the trainer wait for a reader. Raises OSError, with the
    log as it was, where there is no room for the copy.
    """
    before = log.with_name(log.name + ".1")
    try:
        if log.stat().st_size <= limit_bytes:
            return False
        with log.open("rb+") as current:
            current.seek(-limit_bytes, os.SEEK_END)
            with before.open("wb") as old:
                while block := current.read(1 << 20):
                    old.write(block)
            current.truncate(0)
    except FileNotFoundError:
        return False
    except OSError:
        before.unlink(missing_ok=True)
        raise
    return True
