"""Checkpoints as they go out, and what may be changed of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from api.http.schema import In, Out, Stored, Time


class CheckpointOut(Out):
    id: str
    object: Literal["job.checkpoint"] = "job.checkpoint"
    attempt: int
    phase: str
    step: int
    bytes: int
    manifest_sha256: str
    best: bool
    resumable: bool
    pinned: bool
    """Whether it outlives retention, expiry and a cancel of its job."""
    expires_at: datetime | None
    """When it is deleted, unless it is pinned; null is never."""
    metrics: Annotated[dict[str, float], Stored]
    created_at: datetime


class CheckpointPatch(In):
    """Fields left out stay as they are."""

    pinned: bool | None = Field(None, strict=True)
    """A pinned checkpoint outlives retention, expiry and a cancel of its job. Null changes nothing."""
    expires_at: Time | None = None
    """When it shall be deleted, unless it is pinned then; null is never."""
