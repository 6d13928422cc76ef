"""/v1/jobs: create, list, watch and steer distillation jobs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Request
from pydantic import Field
from pydantic_core import from_json
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse, Response

from api.auth import Caller, CallerDep
from api.deps import JobDep, ReadSession, Services, ServicesDep, TransactionRoute, WriteSession, WriteTurn
from api.http.idempotency import IdempotencyKey, Once
from api.http.openapi import problems
from api.http.pagination import DEFAULT_LIMIT, After, Before, Limit, Order, Page, cursor_problems, page_of_json
from api.http.problems import Invalid, PreconditionFailed, PreconditionRequired
from api.http.ranges import none_match, strong_tags
from api.jobs import examples, service
from api.jobs.checked import Checked
from api.jobs.schemas import CancelIn, DryRun, ForkIn, JobCreated, JobOut, JobPatch, RetryIn
from api.services import wake_after_commit
from minillm_core.spec import JobSpec
from store.db import errors as store_errors
from store.db.lookups import Answer
from store.db.tables import Checkpoint, Job
from store.jobs.repository import JobRepository
from store.jobs.transitions import JobState
from store.jobs.vocabulary import Keep, RetryFrom
from store.settings import Settings

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["jobs"])

_States = Annotated[list[JobState], Field(max_length=16)]
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)


@router.post(
    "/jobs",
    status_code=201,
    response_model=JobCreated,
    dependencies=[WriteTurn],
    responses={
        200: {"model": DryRun, "description": "With `dry_run=true`: all checks passed, nothing was made."},
        **problems(400, 401, 403, 409, 413, 422, 429, 503, 507),
    },
    summary="Create a job",
)
def jobs_create(
    spec: Annotated[JobSpec, Body(openapi_examples=examples.CREATE)],
    caller: CallerDep,
    services: ServicesDep,
    dry_run: Annotated[bool, Query(description="Check everything, make nothing.")] = False,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Everything that can be known before training is checked here; the answer names every field at fault.

    A priority above 0 needs the scope `jobs:priority`. 429 where the owner has as many queued jobs or stored bytes as
    one may have.
    """
    service.check_priority(caller, spec.scheduling.priority, param="/scheduling/priority")
    once = Once(caller.owner_id, "/v1/jobs", None if dry_run else idempotency_key, spec)
    services.models.refresh()
    with services.database.look() as session:
        if (earlier := once.earlier(session)) is not None:
            return _created(earlier.body.encode(), replayed=True)
        found = service.checked(spec, owner_id=caller.owner_id, services=services, session=session)
    if dry_run:
        return JSONResponse(service.dry_run(spec, found).model_dump(mode="json"))
    return _create(services, once, spec, caller, found)


def _create(
    services: Services,
    once: Once,
    spec: JobSpec,
    caller: Caller,
    found: Checked,
    origin: Callable[[Session], Checkpoint] | None = None,
) -> Response:
    """The job and the answer that tells of it, kept for a repeated request, in one transaction."""
    try:
        with services.write() as session:
            if (earlier := once.begin(session)) is not None:
                return _created(earlier.body.encode(), replayed=True)
            forked_from = origin(session) if origin is not None else None
            job = service.create(session, spec, owner_id=caller.owner_id, forked_from=forked_from)
            service.hold_to_quotas(session, job.owner_id, services.settings)
            body = service.created(session, job, found)
            once.complete(session, 201, body.decode())
    except store_errors.Conflict as error:
        if error.code in ("file_gone", "model_gone"):
            # Deleted since it was checked: said of the field that names it.
            with services.database.look() as session:
                service.checked(spec, owner_id=caller.owner_id, services=services, session=session, again=True)
        raise
    return _created(body)


def _created(body: bytes, *, replayed: bool = False) -> Response:
    headers = {"Location": f"/v1/jobs/{from_json(body)['id']}"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(body, status_code=201, headers=headers, media_type="application/json")


@router.get(
    "/jobs",
    response_model=Page[JobOut],
    responses=problems(401, 422, 503),
    summary="List jobs",
    openapi_extra={
        "parameters": [
            {
                "name": "metadata",
                "in": "query",
                "style": "deepObject",
                "schema": {
                    "type": "object",
                    "maxProperties": 16,
                    "additionalProperties": {"type": "string", "maxLength": 512},
                },
                "description": "Only jobs with these pairs: `metadata[team]=search`.",
            }
        ]
    },
)
def jobs_list(
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    before: Before = None,
    order: Order = "desc",
    status: Annotated[_States | None, Query(description="Only jobs in one of these states.")] = None,
    state: Annotated[_States | None, Query(description="The same as `status`.")] = None,
) -> Response:
    """Newest first unless `order=asc`; filters narrow the list, and a page's ids are its cursors."""
    metadata = _metadata_filter(request)
    with services.database.look() as session:
        with cursor_problems(after, before):
            found = JobRepository(session).list(
                caller.owner_id,
                limit=limit,
                after=after,
                before=before,
                order=order,
                states=[*(status or ()), *(state or ())],
                metadata=metadata,
            )
        items = service.shown(session, services, found.items, _stamp(request))
    body = page_of_json([item for item, _ in items], found.has_more, [head.id for head in found.items])
    return Response(body, media_type="application/json")


def _stamp(request: Request) -> object:
    answer: Answer | None = request.state.answer
    return answer.stamp if answer is not None else None


def _metadata_filter(request: Request) -> dict[str, str]:
    pairs = {}
    for name, value in request.query_params.multi_items():
        if match := _METADATA.fullmatch(name):
            pairs[match.group(1)] = value
    if len(pairs) > 16:
        raise Invalid("A job has at most 16 pairs of metadata.", param="metadata")
    return pairs


@router.get(
    "/jobs/{job_id}",
    response_model=JobOut,
    responses={304: {"description": "Not changed since the ETag."}, **problems(401, 404, 503)},
    summary="Get a job",
)
def jobs_get(
    job: JobDep,
    request: Request,
    services: ServicesDep,
    session: ReadSession,
    if_none_match: Annotated[
        str | None, Header(description="The ETag of the last answer: 304 if it still holds.")
    ] = None,
) -> Response:
    """Poll this with `If-None-Match`: an unchanged job costs one small query and an empty answer."""
    ((body, etag),) = service.shown(session, services, [job], _stamp(request))
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if none_match(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.patch(
    "/jobs/{job_id}",
    response_model=JobOut,
    responses=problems(400, 401, 403, 404, 409, 412, 422, 428, 503),
    summary="Change a job's name, metadata, priority or time limit",
)
def jobs_update(
    job: JobDep,
    patch: Annotated[JobPatch, Body(openapi_examples=examples.PATCH)],
    caller: CallerDep,
    session: WriteSession,
    if_match: Annotated[str | None, Header(description="The ETag that the change is based on, or `*`.")] = None,
) -> Response:
    """428 without `If-Match`, 412 where the job has changed since that ETag, 409 for a finished job's scheduling.

    A priority above 0, and above the present one, needs the scope `jobs:priority`.
    """
    if patch.priority is not None:
        service.check_priority(caller, patch.priority, param="/priority", present=job.priority)
    if if_match is None:
        raise PreconditionRequired("Send the job's ETag as If-Match, so that no change is lost.", param="If-Match")
    job = JobRepository(session).lock(job)
    if not _is_version(if_match, job):
        raise PreconditionFailed("The job has changed since this ETag: get it again.", param="If-Match")
    job = JobRepository(session).update(
        job,
        name=patch.name,
        metadata=patch.metadata,
        priority=patch.priority,
        max_runtime_seconds=patch.max_runtime_seconds,
    )
    return _job_response(session, job)


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=JobOut,
    responses=problems(400, 401, 404, 409, 422, 503),
    summary="Cancel a job",
)
def jobs_cancel(
    job: JobDep,
    session: WriteSession,
    cancel: Annotated[CancelIn | None, Body(openapi_examples=examples.CANCEL)] = None,
) -> Response:
    """At once where nothing runs, else when the trainer has stopped. Again is no error; a finished job is one (409)."""
    job = JobRepository(session).request_cancel(job, Keep((cancel or CancelIn()).keep))
    return _job_response(session, job, status=202)


@router.post(
    "/jobs/{job_id}/pause",
    status_code=202,
    response_model=JobOut,
    responses=problems(401, 404, 409, 503),
    summary="Pause a job",
)
def jobs_pause(job: JobDep, session: WriteSession) -> Response:
    """A running job writes a checkpoint at its next step and frees its slot. Again is no error."""
    job = JobRepository(session).request_pause(job)
    return _job_response(session, job, status=202)


@router.post(
    "/jobs/{job_id}/resume",
    status_code=202,
    response_model=JobOut,
    responses=problems(401, 404, 409, 429, 503),
    summary="Resume a paused job",
)
def jobs_resume(job: JobDep, services: ServicesDep, session: WriteSession) -> Response:
    """It is queued again and goes on from its newest checkpoint. A job that runs is left as it is."""
    was = job.state
    job = JobRepository(session).resume(job)
    return _queued(session, job, services.settings, new=job.state is not was)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    response_model=JobOut,
    responses=problems(400, 401, 404, 409, 422, 429, 503),
    summary="Retry a failed or expired job",
)
def jobs_retry(
    job: JobDep,
    services: ServicesDep,
    session: WriteSession,
    retry: Annotated[RetryIn | None, Body(openapi_examples=examples.RETRY)] = None,
) -> Response:
    job = JobRepository(session).retry(job, RetryFrom(retry.start_from if retry is not None else "checkpoint"))
    return _queued(session, job, services.settings, new=True)


@router.post(
    "/jobs/{job_id}/fork",
    status_code=201,
    response_model=JobCreated,
    dependencies=[WriteTurn],
    responses=problems(400, 401, 403, 404, 409, 422, 429, 503, 507),
    summary="Make a new job from a checkpoint of this one",
)
def jobs_fork(
    job_id: str,
    fork: Annotated[ForkIn, Body(openapi_examples=examples.FORK)],
    caller: CallerDep,
    services: ServicesDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The new job has this one's spec with the overrides merged in, and begins from the checkpoint's weights."""
    once = Once(caller.owner_id, f"/v1/jobs/{job_id}/fork", idempotency_key, fork)
    services.models.refresh()
    with services.database.read() as session:
        job = JobRepository(session).get_live(caller.owner_id, job_id)
        if (earlier := once.earlier(session)) is not None:
            return _created(earlier.body.encode(), replayed=True)
        spec = service.forked_spec(job, fork)
        service.check_priority(caller, spec.scheduling.priority, param="/overrides/scheduling/priority")
        found = service.checked(spec, owner_id=caller.owner_id, services=services, session=session)

    def origin(session: Session) -> Checkpoint:
        return service.fork_point(session, job, caller.owner_id, fork.checkpoint)

    return _create(services, once, spec, caller, found, origin)


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    responses=problems(401, 404, 409, 503),
    summary="Delete a finished job",
)
def jobs_delete(job: JobDep, session: WriteSession) -> None:
    """It is gone for its owner at once; its files follow, also across a restart. 409 while it is not finished."""
    JobRepository(session).request_delete(job)


def _queued(session: Session, job: Job, settings: Settings, *, new: bool) -> Response:
    if job.state is JobState.QUEUED:
        if new:
            service.hold_to_quotas(session, job.owner_id, settings)
        wake_after_commit(session, job)
    return _job_response(session, job, status=202)


def _job_response(session: Session, job: Job, *, status: int = 200) -> Response:
    body, etag = service.written(session, job)
    return Response(body, status_code=status, headers={"ETag": etag}, media_type="application/json")


def _is_version(if_match: str, job: Job) -> bool:
    """Whether an If-Match names the row as it is, wherever in the queue it stood when the ETag was given."""
    return if_match.strip() == "*" or any(tag.split(".")[0] == str(job.version) for tag in strong_tags(if_match))
