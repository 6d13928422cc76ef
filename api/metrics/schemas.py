"""Measurements as they go out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from api.http.schema import Out, Stored


class MetricOut(Out):
    attempt: int
    phase: str
    step: int
    values: Annotated[dict[str, float], Stored]
    created_at: datetime
