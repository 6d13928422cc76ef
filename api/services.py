"""What one app is made of, built in one place from its settings."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import anyio
from celery import Celery
from sqlalchemy.orm import Session

from api.jobs.checked import RecentChecks
from api.jobs.rendering import QueuePlaces, Renderings
from api.models.catalogue import ModelCatalogue
from store.announcer import Announcer
from store.broker import make_celery
from store.bytes.blobs import BlobStore, LocalBlobs
from store.db.database import Database
from store.db.lookups import Lookups, lookups_of
from store.db.tables import Job
from store.server_paths import ServerPaths
from store.settings import Settings

log = logging.getLogger(__name__)

_WAKES = "wake_after_commit"


@dataclass(frozen=True, slots=True)
class Services:
    """Kept at `app.state.services`."""

    settings: Settings
    database: Database
    celery: Celery
    announcer: Announcer
    blobs: BlobStore
    models: ModelCatalogue
    paths: ServerPaths
    lookups: Lookups
    renderings: Renderings
    places: QueuePlaces
    recent_checks: RecentChecks
    write_turns: anyio.CapacityLimiter
    upload_turns: anyio.CapacityLimiter

    @classmethod
    def of(cls, settings: Settings) -> Services:
        """Connects to nothing."""
        database = Database(
            settings.database_url, connections=settings.threads, wait_seconds=settings.pool_timeout_seconds
        )
        celery = make_celery(settings)
        return cls(
            settings=settings,
            database=database,
            celery=celery,
            announcer=Announcer(celery),
            blobs=LocalBlobs(settings.files_dir),
            models=ModelCatalogue(database, settings),
            paths=ServerPaths(settings),
            lookups=lookups_of(database),
            renderings=Renderings(),
            places=QueuePlaces(),
            recent_checks=RecentChecks(),
            write_turns=anyio.CapacityLimiter(settings.threads // 2),
            upload_turns=anyio.CapacityLimiter(max(1, settings.threads // 8)),
        )

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end of the block, and only then announces queued jobs."""
        with self.database.write() as session:
            session.info[_WAKES] = []
            yield session
        for job_id, gpus in session.info[_WAKES]:
            log.info("job queued", extra={"job_id": job_id})
            self.announcer.announce(job_id, gpus=gpus)

    def close(self) -> None:
        """Announce what waits to be announced, which takes seconds at most, and end every connection."""
        self.announcer.close()
        self.celery.close()
        self.lookups.close()
        self.database.dispose()


def wake_after_commit(session: Session, job: Job) -> None:
    """Announce the job to the workers once this write session has committed."""
    session.info[_WAKES].append((job.id, job.gpus))
