"""What endpoints are given: the app's services, and one database session a request.

A session is opened, used and ended in the one thread that its endpoint runs in (:class:`TransactionRoute`). So no
request holds a connection while it waits for a thread, or one connection while it waits for another; and what is
answered has committed.

Who writes waits for a turn before taking a thread. There are half as many turns as threads, so that the other half
is left to those who read, however long writing takes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from celery import Celery
from fastapi import Depends, Request
from fastapi.routing import APIRoute
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
    write_turns: anyio.CapacityLimiter
    upload_turns: anyio.CapacityLimiter

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end of the block, and only then announces queued jobs."""
        with self.database.write() as session:
            session.info[_WAKES] = []
            yield session
        for job_id in session.info[_WAKES]:
            # Says nothing and raises nothing when the broker is down: workers poll, and the sweeper repeats it.
            wake(self.celery, job_id)


def wake_after_commit(session: Session, job_id: str) -> None:
    """Announce the job to the workers once this write session has committed."""
    session.info[_WAKES].append(job_id)


async def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]


@dataclass(frozen=True, slots=True)
class _Opens:
    """Stands for a session until the endpoint's thread opens it."""

    session: Callable[[], AbstractContextManager[Session]]


async def read_session(services: ServicesDep) -> _Opens:
    return _Opens(services.database.read)


async def write_turn(services: ServicesDep) -> AsyncIterator[None]:
    async with services.write_turns:
        yield


async def _upload_turn(services: ServicesDep) -> AsyncIterator[None]:
    async with services.upload_turns:
        yield


async def write_session(services: ServicesDep, turn: Annotated[None, Depends(write_turn, scope="function")]) -> _Opens:
    return _Opens(services.write)


ReadSession = Annotated[Session, Depends(read_session)]
WriteSession = Annotated[Session, Depends(write_session)]
WriteTurn = Depends(write_turn, scope="function")
"""For an endpoint that reads and checks first, and opens `services.write()` itself for the short part that writes."""


UploadTurn = Depends(_upload_turn, scope="function")
"""For an endpoint that reads a file of any size before it writes: its turns are few, and nobody else's."""


class TransactionRoute(APIRoute):
    """A route whose endpoint runs within its session: the transaction ends where the endpoint does."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _within_its_session(endpoint), **options)


def _within_its_session(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(endpoint, "__wrapped__"):
        return endpoint  # a route that is included in an app is made once more
    if inspect.iscoroutinefunction(endpoint):
        raise TypeError(f"{endpoint.__name__} would hold up every other request: endpoints are plain functions")

    @functools.wraps(endpoint)
    def run(**given: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for name, value in given.items():
                if isinstance(value, _Opens):
                    given[name] = stack.enter_context(value.session())
            return endpoint(**given)

    return run
