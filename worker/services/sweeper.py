"""``python -m worker.services``: what must happen although nobody asks, over and over.

Each pass lets the store recover expired leases, grace periods and deadlines, announces queued jobs, removes the
folders of what was deleted or has expired, and ends processes on this host whose attempt is over. Every part may
be done twice or be cut short anywhere: any number of sweepers may run.
"""

from __future__ import annotations

import datetime as dt
import functools
import logging
import queue
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from minillm_core.spec import TrainerEvent
from store.broker import make_celery, wake
from store.bytes.blobs import LocalBlobs
from store.db.database import DATABASE_AWAY, Database
from store.files import FileRepository
from store.jobs.attempts import ended_attempts
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.due import DoomedCheckpoint, Sweep, sweep_with
from store.jobs.repository import JobRepository
from store.program import begin
from store.server_paths import ServerPaths
from store.settings import Settings
from store.workers import WorkerRepository
from worker.attempt.tail import attempt_log, last_events
from worker.process.identity import attempt_processes
from worker.startup import UNAVAILABLE, end_on_sigterm, wait_for_schema

logger = logging.getLogger(__name__)

FORGET_WORKERS_AFTER = dt.timedelta(days=7)
FORGET_EVERY_SECONDS = 3600.0


class Sweeper:
    """One pass at a time by :meth:`sweep_once`."""

    def __init__(self, database: Database, settings: Settings, celery: Celery) -> None:
        self._database = database
        self._settings = settings
        self._paths = ServerPaths(settings)
        self._celery = celery
        self._away = False
        self._recover_at = 0.0
        self._forget_at = 0.0

    def sweep_once(self) -> Sweep | None:
        """Do what is due; None where the database does not answer."""
        try:
            # After an outage of the database nobody could renew: a lease that expired in it proves nothing.
            recover = not self._away and time.monotonic() >= self._recover_at
            done = sweep_with(self._database, self._settings, recover_leases=recover, folders=self)
            if self._away:
                self._away = False
                self._recover_at = time.monotonic() + self._settings.lease_seconds
            self._report(done)
            for job_id in done.wake:
                if not wake(self._celery, job_id, gpus=done.gpus[job_id]):
                    break  # the next might cost as many seconds: a later sweep asks the broker again
            self.end_orphans()
            self._delete(done)
            if time.monotonic() >= self._forget_at:
                self._forget_at = time.monotonic() + FORGET_EVERY_SECONDS
                with self._database.write() as session:
                    WorkerRepository(session).forget_silent(FORGET_WORKERS_AFTER)
        except SQLAlchemyError as error:
            logger.warning("the sweep was cut short: %s: %s", type(error).__name__, error)
            # A statement that it refuses is no outage.
            self._away = self._away or isinstance(error, DATABASE_AWAY)
            return None
        return done

    def end_orphans(self) -> list[str]:
        """Kill processes on this host of attempts that no longer hold their job; the attempts' ids."""
        found = attempt_processes()
        if not found:
            return []
        with self._database.read() as session:
            ended = sorted(ended_attempts(session, set(found)))
        for attempt_id in ended:
            logger.warning("ending %d processes of the dead attempt %s", len(found[attempt_id]), attempt_id)
            for process in found[attempt_id]:
                process.kill()
        return ended

    def log_tail(self, job_id: str, attempt: int) -> bytes | None:
        """See :class:`store.jobs.due.RunFolders`."""
        return attempt_log(self._settings.runs.attempt(job_id, attempt).path, self._paths).encode() or None

    def last_events(self, job_id: str, attempt: int) -> list[TrainerEvent]:
        """See :class:`store.jobs.due.RunFolders`."""
        return last_events(self._settings.runs.attempt(job_id, attempt).events, self._paths)

    def _report(self, done: Sweep) -> None:
        for kind in ("requeued", "failed", "paused", "cancelled", "expired"):
            for job_id in getattr(done, kind):
                logger.warning("%s: %s by the sweep", job_id, kind)

    def _delete(self, done: Sweep) -> None:
        """Remove what is due, as much as the time between two sweeps allows: no lease shall wait for large folders."""
        until = time.monotonic() + self._settings.sweep_seconds
        for what, remove in self._removals(done):
            try:
                remove()
            except OSError as error:
                logger.error("%s cannot be removed: %s", what, error)
            if time.monotonic() > until:
                return

    def _removals(self, done: Sweep) -> Iterator[tuple[str, Callable[[], None]]]:
        for job_id in done.delete_jobs:
            yield job_id, functools.partial(self._delete_job, job_id)
        for checkpoint in done.delete_checkpoints:
            yield checkpoint.id, functools.partial(self._delete_checkpoint, checkpoint)
        for file_id in done.delete_files:
            yield file_id, functools.partial(self._delete_file, file_id)

    # Folders first, rows last: what is cut short in between is found again.

    def _delete_job(self, job_id: str) -> None:
        if _removed(self._settings.runs.job(job_id), self._settings.runs.root):
            with self._database.write() as session:
                JobRepository(session).purge(job_id)

    def _delete_checkpoint(self, checkpoint: DoomedCheckpoint) -> None:
        run = self._settings.runs.attempt(checkpoint.job_id, checkpoint.attempt)
        if _removed(run.inside(checkpoint.path), run.path):
            with self._database.write() as session:
                CheckpointRepository(session).purge(checkpoint.id)

    def _delete_file(self, file_id: str) -> None:
        LocalBlobs(self._settings.files_dir).delete(file_id)
        with self._database.write() as session:
            FileRepository(session).purge(file_id)


def _removed(folder: Path, within: Path) -> bool:
    """Remove `folder`; whether it is gone. What does not lie below `within` is not ours and stays."""
    if within.resolve() not in folder.resolve().parents:
        logger.error("%s lies outside of %s and is left alone", folder, within)
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def main() -> int:
    settings = begin("services")
    database = Database(settings.database_url)
    end_on_sigterm()
    if not wait_for_schema(database):
        return UNAVAILABLE
    # A SimpleQueue, because a signal handler puts into it.
    stop: queue.SimpleQueue[int] = queue.SimpleQueue()
    signal.signal(signal.SIGTERM, lambda number, _: stop.put(number))
    signal.signal(signal.SIGINT, lambda number, _: stop.put(number))
    sweeper = Sweeper(database, settings, make_celery(settings))
    while True:
        try:
            sweeper.sweep_once()
        except Exception:  # whatever it is: jobs depend on the next one
            logger.exception("the sweep failed")
        try:
            stop.get(timeout=settings.sweep_seconds)
        except queue.Empty:
            continue
        database.dispose()
        return 0
