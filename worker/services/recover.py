"""Jobs whose worker is lost, whose cancel takes too long or whose time is over."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import ClassVar

from prometheus_client import Counter

from minillm_core.spec import TrainerEvent
from store.db.database import DATABASE_AWAY, Database
from store.jobs.due import Recovered, recover
from store.jobs.endings import RetryPolicy
from store.server_paths import ServerPaths
from store.settings import Settings
from worker.attempt.tail import attempt_log, last_events

logger = logging.getLogger(__name__)

JOBS = Counter("minillm_recovered_jobs_total", "Jobs taken from their holders, by what became of them.", ["to"])


class Recover:
    """Knows when the database was away: holders could not renew then, and an expired lease proves nothing."""

    name: ClassVar[str] = "recover"

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._paths = ServerPaths(settings)
        self._away = False
        self._leases_at = 0.0

    def run_once(self) -> Recovered:
        """One pass. Raises SQLAlchemyError where the database does not let it."""
        try:
            if self._writing_takes() > self._settings.heartbeat_seconds or self._away:
                self._leases_at = time.monotonic() + self._settings.lease_seconds
            self._away = False
            done = recover(
                self._database,
                policy=RetryPolicy.of(self._settings),
                cancel_grace_seconds=self._settings.cancel_grace_seconds,
                recover_leases=time.monotonic() >= self._leases_at,
                folders=self,
            )
        except DATABASE_AWAY:  # a statement that it refuses is no outage
            self._away = True
            raise
        for state, ids in asdict(done).items():
            for job_id in ids:
                logger.warning("%s: %s by the sweep", job_id, state, extra={"job_id": job_id})
                JOBS.labels(state).inc()
        return done

    def _writing_takes(self) -> float:
        began = time.monotonic()
        with self._database.write() as session:
            self._database.now(session)
        return time.monotonic() - began

    def log_tail(self, job_id: str, attempt: int) -> bytes | None:
        """See :class:`store.jobs.due.RunFolders`."""
        return attempt_log(self._settings.runs.attempt(job_id, attempt).path, self._paths).encode() or None

    def last_events(self, job_id: str, attempt: int) -> list[TrainerEvent]:
        """See :class:`store.jobs.due.RunFolders`."""
        return last_events(self._settings.runs.attempt(job_id, attempt).events, self._paths)
