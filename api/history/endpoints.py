"""/v1/jobs/{id}/{events,metrics,logs,attempts}."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from api.auth import CallerDep
from api.deps import ReadSession, ServicesDep, TransactionRoute
from api.history import service
from api.history.logs import Stream
from api.history.schemas import AttemptOut, EventOut, LogOut, MetricOut
from api.history.streams import CSV, EVENT_STREAM, JSONL, accepted, event_stream, metrics_csv, metrics_jsonl
from api.http.openapi import problems
from api.http.pagination import Limit, Page, page
from api.http.problems import Invalid, NotAcceptable
from api.http.ranges import byte_range
from api.jobs.service import live_job
from store.jobs.events import EventRepository
from store.jobs.metrics import MetricRepository
from store.jobs.repository import JobRepository

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["jobs"])
JSON = "application/json"
TEXT = "text/plain"

_ANY_TEXT = {"schema": {"type": "string"}}


@router.get(
    "/jobs/{job_id}/events",
    response_model=Page[EventOut],
    responses={
        200: {"content": {EVENT_STREAM: _ANY_TEXT}, "description": "A page, or a stream by Accept."},
        **problems(401, 404, 406, 422, 503),
    },
    summary="List or stream a job's events",
)
def events_list(
    job_id: str,
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    session: ReadSession,
    after: Annotated[int, Query(ge=0, lt=2**53, description="Events after this sequence number.")] = 0,
    limit: Limit = 100,
    accept: Annotated[str | None, Header(description=f"`{EVENT_STREAM}` for server-sent events.")] = None,
    last_event_id: Annotated[str | None, Header(description="Where a broken stream goes on.")] = None,
) -> Response:
    """Oldest first; `seq` is the cursor, so `last_id` is a sequence number.

    With `Accept: text/event-stream` every event from `after` (or `Last-Event-ID`) on is sent as it
    happens, until the job is finished.
    """
    job = live_job(session, caller.owner_id, job_id)
    media = accepted(accept, (JSON, EVENT_STREAM))
    if media is None:
        raise NotAcceptable(f"Events come as {JSON} or {EVENT_STREAM}.")
    if media == EVENT_STREAM:
        if request.method == "HEAD":
            return Response(media_type=EVENT_STREAM)  # the stream itself lasts as long as the job
        start = _sequence(last_event_id) if last_event_id else after
        read = functools.partial(service.read_events, services, caller.owner_id, job_id)
        return StreamingResponse(
            event_stream(read, start),
            media_type=EVENT_STREAM,
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    found = EventRepository(session).list(job, after=after, limit=limit)
    out = page(found.items, found.has_more, service.event_out, lambda event: str(event.seq))
    return Response(out.model_dump_json(), media_type=JSON)


def _sequence(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise Invalid("Last-Event-ID is the id of an event of this stream, a number.", param="Last-Event-ID")
    return int(text)


@router.get(
    "/jobs/{job_id}/metrics",
    response_model=Page[MetricOut],
    responses={
        200: {"content": {CSV: _ANY_TEXT, JSONL: _ANY_TEXT}, "description": "All points, in the form of Accept."},
        **problems(401, 404, 406, 422, 503),
    },
    summary="Get a job's measurements",
)
def metrics_list(
    job_id: str,
    caller: CallerDep,
    session: ReadSession,
    names: Annotated[str | None, Query(max_length=2000, description="Only these metrics, by commas.")] = None,
    phase: Annotated[str | None, Query(max_length=32)] = None,
    since_step: Annotated[int, Query(ge=0, lt=2**53, description="Only steps from this one on.")] = 0,
    points: Annotated[
        int | None, Query(ge=1, le=100_000, description="Thin each series to so many, its last among them.")
    ] = None,
    accept: Annotated[str | None, Header(description=f"`{CSV}` or `{JSONL}` for a download.")] = None,
) -> Response:
    """By phase in the order it ran, then step. Of attempts that went through the same step the newest counts."""
    job = live_job(session, caller.owner_id, job_id)
    wanted = [name for name in names.split(",") if name] if names is not None else None
    media = accepted(accept, (JSON, CSV, JSONL))
    if media is None:
        raise NotAcceptable(f"Metrics come as {JSON}, {CSV} or {JSONL}.")
    metrics = MetricRepository(session)
    series = metrics.series(job, names=wanted, phase=phase, since_step=since_step, points=points)
    found = service.metric_points(series.items)
    if media == CSV:
        columns = wanted if wanted is not None else metrics.names(job, phase=phase, since_step=since_step)
        return StreamingResponse(metrics_csv(found, columns), media_type=CSV)
    if media == JSONL:
        return StreamingResponse(metrics_jsonl(found), media_type=JSONL)
    out = Page[MetricOut](object="list", data=list(found), has_more=False, first_id=None, last_id=None)
    return Response(out.model_dump_json(), media_type=JSON)


@router.get("/jobs/{job_id}/attempts", responses=problems(401, 404, 503), summary="List a job's attempts")
def attempts_list(job_id: str, caller: CallerDep, session: ReadSession) -> Page[AttemptOut]:
    """Every attempt, oldest first, on one page."""
    rows = JobRepository(session).attempts(live_job(session, caller.owner_id, job_id))
    return page(rows, False, service.attempt_out, lambda row: row.id)


@router.get("/jobs/{job_id}/attempts/{number}", responses=problems(401, 404, 422, 503), summary="Get an attempt")
def attempts_get(job_id: str, number: int, caller: CallerDep, session: ReadSession) -> AttemptOut:
    job = live_job(session, caller.owner_id, job_id)
    return service.attempt_out(JobRepository(session).attempt(job, number))


@router.get(
    "/jobs/{job_id}/logs",
    response_model=LogOut,
    responses={
        200: {"content": {TEXT: _ANY_TEXT}, "description": "A piece, or by Accept the bare text."},
        206: {"content": {TEXT: _ANY_TEXT}, "description": "The byte range asked for."},
        **problems(401, 404, 406, 416, 422, 503),
    },
    summary="Read the trainer's output",
)
def logs_get(
    job_id: str,
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    session: ReadSession,
    attempt: Annotated[int | None, Query(ge=1, lt=2**31, description="The newest when left out.")] = None,
    stream: Annotated[Stream, Query()] = "stderr",
    offset: Annotated[int, Query(gt=-(2**53), lt=2**53, description="First byte; negative counts from the end.")] = 0,
    accept: Annotated[str | None, Header(description=f"`{TEXT}` for the bare text, with `Range` if wanted.")] = None,
) -> Response:
    """From the run folder; where that is gone, the tail kept of a failed attempt.

    As JSON at most a MiB from `offset` on; as text all of it, or the `Range` asked for.
    """
    job = live_job(session, caller.owner_id, job_id)
    media = accepted(accept, (JSON, TEXT))
    if media is None:
        raise NotAcceptable(f"Logs come as {JSON} or {TEXT}.")
    number, source = service.job_log(services, session, job, attempt, stream)
    if media == JSON:
        return Response(service.log_out(number, source, stream, offset).model_dump_json(), media_type=JSON)
    # A log grows: there is no entity tag that a range could be held against.
    wanted = byte_range(request.headers.get("range"), None, etag="", size=source.size)
    start, stop = wanted or (0, source.size)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{source.size}"
    return StreamingResponse(
        source.inert(start, stop), status_code=206 if wanted else 200, media_type=TEXT, headers=headers
    )
