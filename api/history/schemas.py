"""What a job leaves behind, as it goes out."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from api.http.schema import Out
from minillm_core.spec import Failure


class EventOut(Out):
    id: str
    object: Literal["job.event"]
    seq: int
    """1, 2, 3 ... within the job: the cursor of this list and the id of the stream."""
    type: str
    """state, phase, checkpoint, checkpoint_removed, student, failure, message or request."""
    level: str
    code: str
    """For `state` the new state, else a stable snake_case name."""
    message: str
    data: dict[str, Any]
    attempt: int | None
    created_at: datetime


class MetricOut(Out):
    attempt: int
    phase: str
    step: int
    values: dict[str, float]
    created_at: datetime


class AttemptOut(Out):
    id: str
    object: Literal["job.attempt"]
    attempt: int
    """1, 2, 3 ... within the job."""
    state: str
    """active, succeeded, failed, stopped or lost."""
    worker_id: str
    host: str
    pid: int | None
    """Process of the trainer on that host."""
    exit_code: int | None
    signal: int | None
    failure: Failure | None
    phase: str | None
    step: int | None
    started_at: datetime
    heartbeat_at: datetime
    ended_at: datetime | None


class LogOut(Out):
    """A piece of an attempt's output. Read on at `next_offset`."""

    object: Literal["job.log"]
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
