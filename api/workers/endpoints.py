"""/v1/workers: who takes jobs, since when silent, draining one and taking that back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from api.auth import AdminDep, CallerDep
from api.deps import ReadSession, TransactionRoute, WriteSession
from api.http.openapi import problems
from api.http.pagination import Page, page
from api.http.schema import Out
from store.db.clock import database_now
from store.db.tables import Worker
from store.workers import WorkerRepository

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["workers"])


class WorkerOut(Out):
    id: str
    object: Literal["worker"]
    host: str
    pid: int
    slots: int
    devices: dict[str, Any]
    online: bool
    """Neither stopped nor silent for three of its heartbeats."""
    draining: bool
    """It takes no more jobs."""
    slot_dirty: str | None
    """Why it refuses jobs although it is idle."""
    heartbeat_age_seconds: float
    started_at: datetime
    heartbeat_at: datetime
    stopped_at: datetime | None


@router.get("/workers", responses=problems(401, 422, 503), summary="List workers")
def workers_list(
    caller: CallerDep,
    session: ReadSession,
    include_stopped: Annotated[bool, Query(description="Also those that have ended.")] = False,
) -> Page[WorkerOut]:
    """Newest first, at most a hundred on one page."""
    rows = WorkerRepository(session).list(include_stopped=include_stopped)
    now = database_now(session)
    return page(rows, False, lambda row: _worker_out(session, row, now), lambda worker: worker.id)


@router.get("/workers/{worker_id}", responses=problems(401, 404, 503), summary="Get a worker")
def workers_get(worker_id: str, caller: CallerDep, session: ReadSession) -> WorkerOut:
    return _worker_out(session, WorkerRepository(session).get(worker_id), database_now(session))


@router.post(
    "/workers/{worker_id}/drain", status_code=202, responses=problems(401, 403, 404, 503), summary="Drain a worker"
)
def workers_drain(worker_id: str, caller: AdminDep, session: WriteSession) -> WorkerOut:
    """It checkpoints and hands back its job and takes no more. Needs the scope admin. Again is no error."""
    row = WorkerRepository(session).request_drain(worker_id)
    return _worker_out(session, row, database_now(session))


@router.post(
    "/workers/{worker_id}/undrain", status_code=202, responses=problems(401, 403, 404, 503), summary="Undrain a worker"
)
def workers_undrain(worker_id: str, caller: AdminDep, session: WriteSession) -> WorkerOut:
    """It takes jobs again. Needs the scope admin. Again is no error."""
    row = WorkerRepository(session).undrain(worker_id)
    return _worker_out(session, row, database_now(session))


def _worker_out(session: Session, row: Worker, now: datetime) -> WorkerOut:
    return WorkerOut(
        id=row.id,
        object="worker",
        host=row.host,
        pid=row.pid,
        slots=row.slots,
        devices=row.devices,
        online=WorkerRepository(session).is_online(row, now),
        draining=row.draining,
        slot_dirty=row.slot_dirty,
        heartbeat_age_seconds=max(0.0, (now - row.heartbeat_at).total_seconds()),
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
        stopped_at=row.stopped_at,
    )
