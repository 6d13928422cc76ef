"""Checkpoints as they go out, and what may be changed of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from api.http.schema import In, Out

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _rfc3339(value: Any) -> Any:
    if not isinstance(value, str) or _TIME.fullmatch(value) is None:
        raise ValueError("This is a time with its offset (RFC 3339), such as 2030-01-31T12:00:00Z.")
    return value


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("This time lies outside of the years 1 to 9999.") from None


Time = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_utc)]
"""An RFC 3339 date-time, in UTC once it is read."""


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
    metrics: dict[str, float]
    created_at: datetime


class CheckpointPatch(In):
    """Fields left out stay as they are."""

    pinned: bool | None = Field(None, strict=True)
    """A pinned checkpoint outlives retention, expiry and a cancel of its job. Null changes nothing."""
    expires_at: Time | None = None
    """When it shall be deleted, unless it is pinned then; null is never."""
