"""/v1/jobs/{id}/checkpoints."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from api.checkpoints import examples, service
from api.checkpoints.schemas import CheckpointOut, CheckpointPatch
from api.deps import JobDep, ReadSession, ServicesDep, TransactionRoute, WriteSession
from api.http.openapi import problems
from api.http.pagination import After, Before, Limit, Order, Page, cursor_problems, page
from store.jobs.checkpoints import CheckpointRepository

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["jobs"])


@router.get("/jobs/{job_id}/checkpoints", responses=problems(401, 404, 422, 503), summary="List a job's checkpoints")
def checkpoints_list(
    job: JobDep,
    session: ReadSession,
    limit: Limit = 20,
    after: After = None,
    before: Before = None,
    order: Order = "desc",
) -> Page[CheckpointOut]:
    with cursor_problems(after, before):
        found = CheckpointRepository(session).list(job, limit=limit, after=after, before=before, order=order)
    return page(found.items, found.has_more, CheckpointOut.model_validate, lambda row: row.id)


@router.get("/jobs/{job_id}/checkpoints/{checkpoint_id}", responses=problems(401, 404, 503), summary="Get a checkpoint")
def checkpoints_get(job: JobDep, checkpoint_id: str, session: ReadSession) -> CheckpointOut:
    return CheckpointOut.model_validate(service.of_job(session, job, checkpoint_id))


@router.patch(
    "/jobs/{job_id}/checkpoints/{checkpoint_id}",
    responses=problems(400, 401, 404, 409, 422, 503),
    summary="Pin a checkpoint, or set when it expires",
)
def checkpoints_update(
    job: JobDep,
    checkpoint_id: str,
    patch: Annotated[CheckpointPatch, Body(openapi_examples=examples.PATCH)],
    services: ServicesDep,
    session: WriteSession,
) -> CheckpointOut:
    """A running trainer learns of a pin within seconds; 409 `checkpoint_gone` where it was quicker."""
    row = service.of_job(session, job, checkpoint_id)
    return CheckpointOut.model_validate(service.change(session, services.settings, row, patch))


@router.delete(
    "/jobs/{job_id}/checkpoints/{checkpoint_id}",
    status_code=204,
    responses=problems(401, 404, 409, 503),
    summary="Delete a checkpoint",
)
def checkpoints_delete(job: JobDep, checkpoint_id: str, session: WriteSession) -> None:
    """It is gone at once; its files follow.

    409 while it is pinned, while an unfinished fork begins from it, and while an attempt may go on from it.
    """
    CheckpointRepository(session).request_delete(service.of_job(session, job, checkpoint_id))
