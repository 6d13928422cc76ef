"""Measurements as they go out."""

from __future__ import annotations

from datetime import datetime

from api.http.schema import Out


class MetricOut(Out):
    attempt: int
    phase: str
    step: int
    values: dict[str, float]
    created_at: datetime
