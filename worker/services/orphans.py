"""Processes on this host whose attempt is over, where neither their supervisor nor their guardian lived to end them."""

from __future__ import annotations

import logging
from typing import ClassVar

from prometheus_client import Counter

from store.db.database import Database
from store.jobs.attempts import ended_attempts
from worker.process.identity import attempt_processes

logger = logging.getLogger(__name__)

ENDED = Counter("minillm_orphan_processes_total", "Processes of ended attempts that were killed on this host.")


class Orphans:
    name: ClassVar[str] = "orphans"

    def __init__(self, database: Database) -> None:
        self._database = database

    def run_once(self) -> list[str]:
        """One pass; the attempts that had processes left. Raises SQLAlchemyError where the database is away."""
        found = attempt_processes()
        if not found:
            return []
        with self._database.read() as session:
            ended = sorted(ended_attempts(session, set(found)))
        for attempt_id in ended:
            logger.warning("ending %d processes of the dead attempt %s", len(found[attempt_id]), attempt_id)
            for process in found[attempt_id]:
                process.kill()
                ENDED.inc()
        return ended
