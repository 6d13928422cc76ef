"""What endpoints are given: the app's services and database sessions.

Both session dependencies close before the response is sent (`scope="function"`): a 201 is only
ever said of a transaction that has committed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.models.registry import Registry
from store.broker import wake
from store.bytes.blobs import BlobStore
from store.db.database import Database
from store.settings import Settings

_WAKES = "wake_after_commit"


@dataclass(frozen=True, slots=True)
class Services:
    """What one app is made of; kept at `app.state.services`."""

    settings: Settings
    database: Database
    celery: Celery
    blobs: BlobStore
    registry: Registry


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]


def read_session(services: ServicesDep) -> Iterator[Session]:
    with services.database.read() as session:
        yield session


def write_session(services: ServicesDep) -> Iterator[Session]:
    """A transaction that begins at its first statement, commits, and only then announces queued jobs."""
    with services.database.write() as session:
        session.info[_WAKES] = []
        yield session
    for job_id in session.info[_WAKES]:
        # Says nothing and raises nothing when the broker is down: workers poll, and the sweeper repeats it.
        wake(services.celery, job_id)


def wake_after_commit(session: Session, job_id: str) -> None:
    """Announce the job to the workers once this write session has committed."""
    session.info[_WAKES].append(job_id)


ReadSession = Annotated[Session, Depends(read_session, scope="function")]
WriteSession = Annotated[Session, Depends(write_session, scope="function")]
