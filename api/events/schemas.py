"""Events as they go out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from api.http.schema import Out, Stored


class EventOut(Out):
    id: str
    object: Literal["job.event"] = "job.event"
    seq: int
    """1, 2, 3 ... within the job: the cursor of this list and the id of the stream."""
    type: str
    """state, phase, checkpoint, checkpoint_removed, student, failure, message or request."""
    level: str
    code: str
    """For `state` the new state, else a stable snake_case name."""
    message: str
    data: Annotated[dict[str, Any], Stored]
    attempt: int | None
    created_at: datetime
