"""Workers as they go out."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from api.http.schema import Out


class WorkerOut(Out):
    id: str
    object: Literal["worker"] = "worker"
    host: str
    pid: int
    slots: int
    devices: dict[str, Any]
    online: bool
    """Neither stopped nor silent for three of its heartbeats."""
    draining: bool
    """It takes no more jobs."""
    slot_dirty: str | None
    """Why it refuses jobs although it is idle."""
    heartbeat_age_seconds: float
    started_at: datetime
    heartbeat_at: datetime
    stopped_at: datetime | None
