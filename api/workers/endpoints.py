"""/v1/workers: who takes jobs, since when silent, draining one and taking that back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from api.auth import AdminDep, CallerDep
from api.deps import ReadSession, TransactionRoute, WriteSession
from api.http.openapi import problems
from api.http.pagination import Page, page
from api.workers import service
from api.workers.schemas import WorkerOut
from store.db.tables import Worker
from store.workers import WorkerRepository

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["workers"])


@router.get("/workers", responses=problems(401, 422, 503), summary="List workers")
def workers_list(
    caller: CallerDep,
    session: ReadSession,
    include_stopped: Annotated[bool, Query(description="Also those that have ended.")] = False,
) -> Page[WorkerOut]:
    """Newest first, at most a hundred on one page."""
    rows = WorkerRepository(session).list(include_stopped=include_stopped)
    return page(service.observed(session, rows), False, WorkerOut.model_validate, lambda worker: worker.id)


@router.get("/workers/{worker_id}", responses=problems(401, 404, 503), summary="Get a worker")
def workers_get(worker_id: str, caller: CallerDep, session: ReadSession) -> WorkerOut:
    return _out(session, WorkerRepository(session).get(worker_id))


@router.post(
    "/workers/{worker_id}/drain", status_code=202, responses=problems(401, 403, 404, 503), summary="Drain a worker"
)
def workers_drain(worker_id: str, caller: AdminDep, session: WriteSession) -> WorkerOut:
    """It checkpoints and hands back its job and takes no more. Needs the scope admin. Again is no error."""
    return _out(session, WorkerRepository(session).request_drain(worker_id))


@router.post(
    "/workers/{worker_id}/undrain", status_code=202, responses=problems(401, 403, 404, 503), summary="Undrain a worker"
)
def workers_undrain(worker_id: str, caller: AdminDep, session: WriteSession) -> WorkerOut:
    """It takes jobs again. Needs the scope admin. Again is no error."""
    return _out(session, WorkerRepository(session).undrain(worker_id))


def _out(session: Session, row: Worker) -> WorkerOut:
    return WorkerOut.model_validate(service.observed(session, [row])[0])
