"""/v1/jobs/{id}/events."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from api.deps import JobDep, ReadSession, ServicesDep, TransactionRoute
from api.events import service
from api.events.schemas import EventOut
from api.events.stream import event_stream
from api.http.negotiation import ANY_TEXT, EVENT_STREAM, JSON, accepted
from api.http.openapi import problems
from api.http.pagination import Limit, Page, page
from api.http.problems import Invalid, NotAcceptable
from store.jobs.events import EventRepository

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["jobs"])


@router.get(
    "/jobs/{job_id}/events",
    response_model=Page[EventOut],
    responses={
        200: {
            "content": {EVENT_STREAM: ANY_TEXT},
            "description": "A page, or a stream by Accept.",
        },
        **problems(401, 404, 406, 422, 503),
    },
    summary="List or stream a job's events",
)
def events_list(
    job: JobDep,
    request: Request,
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
    media = accepted(accept, (JSON, EVENT_STREAM))
    if media is None:
        raise NotAcceptable(f"Events come as {JSON} or {EVENT_STREAM}.")
    if media == EVENT_STREAM:
        if request.method == "HEAD":
            return Response(media_type=EVENT_STREAM)  # the stream itself lasts as long as the job
        start = _sequence(last_event_id) if last_event_id else after
        read = functools.partial(service.follow, services.database, job)
        return StreamingResponse(
            event_stream(read, start),
            media_type=EVENT_STREAM,
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    found = EventRepository(session).list(job, after=after, limit=limit)
    out = page(found.items, found.has_more, EventOut.model_validate, lambda event: str(event.seq))
    return Response(out.model_dump_json(), media_type=JSON)


def _sequence(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise Invalid("Last-Event-ID is the id of an event of this stream, a number.", param="Last-Event-ID")
    return int(text)
