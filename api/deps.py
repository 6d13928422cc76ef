"""What endpoints are given: the app's services, one database session a request, and the job of the path.

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
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session

from api.auth import CallerDep
from api.services import Services
from store.db.tables import Job
from store.jobs.repository import JobRepository


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


async def _write_turn(services: ServicesDep) -> AsyncIterator[None]:
    async with services.write_turns:
        yield


async def _upload_turn(services: ServicesDep) -> AsyncIterator[None]:
    async with services.upload_turns:
        yield


WriteTurn = Depends(_write_turn, scope="function")
"""For an endpoint that reads and checks first, and opens `services.write()` itself for the short part that writes."""

UploadTurn = Depends(_upload_turn, scope="function")
"""For an endpoint that reads a file of any size before it writes: its turns are few, and nobody else's."""


async def write_session(services: ServicesDep, turn: Annotated[None, WriteTurn]) -> _Opens:
    return _Opens(services.write)


ReadSession = Annotated[Session, Depends(read_session)]
WriteSession = Annotated[Session, Depends(write_session)]


@dataclass(frozen=True, slots=True)
class _JobOfPath:
    """Stands for the caller's job until the endpoint's thread reads it, in the endpoint's own session."""

    owner_id: str
    job_id: str

    def read(self, session: Session) -> Job:
        return JobRepository(session).get_live(self.owner_id, self.job_id)


async def _job_of_path(job_id: str, caller: CallerDep) -> _JobOfPath:
    return _JobOfPath(caller.owner_id, job_id)


JobDep = Annotated[Job, Depends(_job_of_path)]
"""The job named by the path, of the caller: 404 where there is none. Its endpoint takes a session too."""


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
            session = None
            for name, value in given.items():
                if isinstance(value, _Opens):
                    given[name] = session = stack.enter_context(value.session())
            for name, value in given.items():
                if isinstance(value, _JobOfPath):
                    assert session is not None, f"{endpoint.__name__} takes a job and no session"
                    given[name] = value.read(session)
            return endpoint(**given)

    return run
