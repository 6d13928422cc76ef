"""/v1/jobs/{id}/attempts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from api.attempts.schemas import AttemptOut
from api.deps import JobDep, ReadSession, TransactionRoute
from api.http.openapi import problems
from api.http.pagination import Page, page
from store.jobs.repository import JobRepository

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["jobs"])


@router.get("/jobs/{job_id}/attempts", responses=problems(401, 404, 503), summary="List a job's attempts")
def attempts_list(job: JobDep, session: ReadSession) -> Page[AttemptOut]:
    """Every attempt, oldest first, on one page."""
    rows = JobRepository(session).attempts(job)
    return page(rows, False, AttemptOut.model_validate, lambda row: row.id)


@router.get("/jobs/{job_id}/attempts/{number}", responses=problems(401, 404, 422, 503), summary="Get an attempt")
def attempts_get(job: JobDep, number: Annotated[int, Path(ge=1, lt=2**31)], session: ReadSession) -> AttemptOut:
    return AttemptOut.model_validate(JobRepository(session).attempt(job, number))
