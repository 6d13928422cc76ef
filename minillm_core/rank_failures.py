"""Failures of ranks other than the main one, which alone writes events.

A rank that fails leaves ``RUN_DIR/failure-<rank>.json`` before it ends. Its end breaks the collectives
of the others, so the file is there before they fail in turn; whoever reports reads the oldest one.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from minillm_core.spec import Failure

RANK_LOST = "rank_lost"
"""Code of a failure that only says that another rank is gone."""


def leave_failure(run_dir: Path, rank: int, failure: Failure) -> None:
    """Write the failure of ``rank``, whole or not at all. Never raises: the run has failed already."""
    path = run_dir / f"failure-{rank}.json"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(failure.model_dump_json())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)


def left_failure(run_dir: Path) -> Failure | None:
    """The oldest failure that names a cause, else the oldest at all, else None."""
    found: list[tuple[bool, int, Failure]] = []
    for path in run_dir.glob("failure-*.json"):
        try:
            failure = Failure.model_validate_json(path.read_bytes())
            found.append((failure.code == RANK_LOST, path.stat().st_mtime_ns, failure))
        except (OSError, ValidationError):
            continue
    return min(found, key=lambda entry: entry[:2])[2] if found else None


def forget_failures(run_dir: Path, rank: int | None = None) -> None:
    """Remove what earlier runs in this folder left: of one rank, or of all."""
    for path in run_dir.glob("failure-*.json" if rank is None else f"failure-{rank}.json"):
        path.unlink(missing_ok=True)
