"""Workers as they stand at the moment of asking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from store.db.clock import database_now
from store.db.tables import Worker
from store.workers import WorkerRepository


@dataclass(frozen=True)
class Observed:
    """A worker's row, with what the time of observation says of it."""

    row: Worker
    now: datetime
    online: bool

    @property
    def heartbeat_age_seconds(self) -> float:
        return max(0.0, (self.now - self.row.heartbeat_at).total_seconds())

    def __getattr__(self, column: str) -> Any:
        return getattr(self.row, column)


def observed(session: Session, rows: Sequence[Worker]) -> list[Observed]:
    now = database_now(session)
    workers = WorkerRepository(session)
    return [Observed(row, now, workers.is_online(row, now)) for row in rows]
