"""Queued jobs that nobody has claimed are announced again: their message was lost, or there was none."""

from __future__ import annotations

from typing import ClassVar

from celery import Celery
from prometheus_client import Counter

from store.broker import wake
from store.db.database import Database
from store.jobs.due import to_announce
from store.settings import Settings

SENT = Counter("minillm_announcements_total", "Announcements of jobs, and whether the broker took them.", ["taken"])


class Announce:
    name: ClassVar[str] = "announce"

    def __init__(self, database: Database, settings: Settings, celery: Celery) -> None:
        self._database = database
        self._settings = settings
        self._celery = celery

    def run_once(self) -> list[str]:
        """One pass; the jobs that were due. Raises SQLAlchemyError where the database does not let it."""
        with self._database.write() as session:
            jobs = to_announce(session, self._settings.wake_seconds)
        for job_id, gpus in jobs.items():
            taken = wake(self._celery, job_id, gpus=gpus)
            SENT.labels("yes" if taken else "no").inc()
            if not taken:
                break  # the next might cost as many seconds: a later pass asks the broker again
        return list(jobs)
