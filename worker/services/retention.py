"""What has expired or was deleted goes: rows, and what they stand for on the disk."""

from __future__ import annotations

import datetime as dt
import functools
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from prometheus_client import Counter

from store.bytes.blobs import LocalBlobs
from store.db.database import Database
from store.files import FileRepository
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.due import Doomed, DoomedCheckpoint, doomed
from store.jobs.repository import JobRepository
from store.settings import Settings
from store.workers import WorkerRepository

logger = logging.getLogger(__name__)

FORGET_WORKERS_AFTER = dt.timedelta(days=7)
FORGET_EVERY_SECONDS = 3600.0

REMOVED = Counter("minillm_removals_total", "What was removed from the disk and the database.", ["kind", "ended"])


class Retention:
    name: ClassVar[str] = "retention"

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._forget_at = 0.0

    def run_once(self) -> None:
        """One pass, as much of it as the time between two allows: a large folder shall not keep others from going.

        Raises SQLAlchemyError where the database does not let it.
        """
        with self._database.write() as session:
            left = doomed(session)
        until = time.monotonic() + self._settings.sweep_seconds
        for kind, what, remove in self._removals(left):
            ended = "done"
            try:
                remove()
            except OSError as error:
                ended = "failed"
                logger.error("%s cannot be removed: %s", what, error)
            REMOVED.labels(kind, ended).inc()
            if time.monotonic() > until:
                return
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + FORGET_EVERY_SECONDS
            with self._database.write() as session:
                WorkerRepository(session).forget_silent(FORGET_WORKERS_AFTER)

    def _removals(self, left: Doomed) -> Iterator[tuple[str, str, Callable[[], None]]]:
        for job_id in left.jobs:
            yield "job", job_id, functools.partial(self._delete_job, job_id)
        for checkpoint in left.checkpoints:
            yield "checkpoint", checkpoint.id, functools.partial(self._delete_checkpoint, checkpoint)
        for file_id in left.files:
            yield "file", file_id, functools.partial(self._delete_file, file_id)

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
