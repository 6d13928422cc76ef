"""/v1/jobs/{id}/checkpoints."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from api.auth import CallerDep
from api.checkpoints import examples, service
from api.checkpoints.schemas import CheckpointOut, CheckpointPatch
from api.deps import ReadSession, ServicesDep, TransactionRoute, WriteSession
from api.http.openapi import problems
from api.http.pagination import After, Before, Limit, Order, Page, cursor_problems, page
from api.jobs.service import live_job
from store.jobs.checkpoints import CheckpointRepository

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["jobs"])


@router.get("/jobs/{job_id}/checkpoints", responses=problems(401, 404, 422, 503), summary="List a job's checkpoints")
def checkpoints_list(
    job_id: str,
    caller: CallerDep,
    session: ReadSession,
    limit: Limit = 20,
    after: After = None,
    before: Before = None,
    order: Order = "desc",
) -> Page[CheckpointOut]:
    job = live_job(session, caller.owner_id, job_id)
    with cursor_problems(after, before):
        found = CheckpointRepository(session).list(job, limit=limit, after=after, before=before, order=order)
    return page(found.items, found.has_more, service.checkpoint_out, lambda row: row.id)


@router.get("/jobs/{job_id}/checkpoints/{checkpoint_id}", responses=problems(401, 404, 503), summary="Get a checkpoint")
def checkpoints_get(job_id: str, checkpoint_id: str, caller: CallerDep, session: ReadSession) -> CheckpointOut:
    return service.checkpoint_out(service.checkpoint_of(session, caller.owner_id, job_id, checkpoint_id))


@router.patch(
    "/jobs/{job_id}/checkpoints/{checkpoint_id}",
    responses=problems(400, 401, 404, 409, 422, 503),
    summary="Pin a checkpoint, or set when it expires",
)
def checkpoints_update(
    job_id: str,
    checkpoint_id: str,
    patch: Annotated[CheckpointPatch, Body(openapi_examples=examples.PATCH)],
    caller: CallerDep,
    services: ServicesDep,
    session: WriteSession,
) -> CheckpointOut:
    """A running trainer learns of a pin within seconds; 409 `checkpoint_gone` where it was quicker."""
    row = service.checkpoint_of(session, caller.owner_id, job_id, checkpoint_id)
    return service.checkpoint_out(service.change(session, services.settings, row, patch))


@router.delete(
    "/jobs/{job_id}/checkpoints/{checkpoint_id}",
    status_code=204,
    responses=problems(401, 404, 409, 503),
    summary="Delete a checkpoint",
)
def checkpoints_delete(job_id: str, checkpoint_id: str, caller: CallerDep, session: WriteSession) -> None:
    """It is gone at once; its files follow.

    409 while it is pinned, while an unfinished fork begins from it, and while an attempt may go on from it.
    """
    row = service.checkpoint_of(session, caller.owner_id, job_id, checkpoint_id)
    CheckpointRepository(session).request_delete(row)
