"""Attempts as they go out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from api.http.schema import Out, Stored
from minillm_core.spec import Failure


class AttemptOut(Out):
    id: str
    object: Literal["job.attempt"] = "job.attempt"
    attempt: int = Field(validation_alias="number")
    """1, 2, 3 ... within the job."""
    state: str
    """active, succeeded, failed, stopped or lost."""
    worker_id: str
    host: str
    pid: int | None
    """Process of the trainer on that host."""
    exit_code: int | None
    signal: int | None
    failure: Annotated[Failure | None, Stored]
    phase: str | None
    step: int | None
    started_at: datetime
    heartbeat_at: datetime
    ended_at: datetime | None
