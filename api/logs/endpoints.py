"""/v1/jobs/{id}/logs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from api.deps import JobDep, ReadSession, ServicesDep, TransactionRoute
from api.http.negotiation import ANY_TEXT, JSON, TEXT, accepted
from api.http.openapi import problems
from api.http.problems import NotAcceptable
from api.http.ranges import byte_range
from api.logs import service
from api.logs.schemas import LogOut
from store.bytes.runs import Stream

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["jobs"])


@router.get(
    "/jobs/{job_id}/logs",
    response_model=LogOut,
    responses={
        200: {"content": {TEXT: ANY_TEXT}, "description": "A piece, or by Accept the bare text."},
        206: {"content": {TEXT: ANY_TEXT}, "description": "The byte range asked for."},
        **problems(401, 404, 406, 416, 422, 503),
    },
    summary="Read the trainer's output",
)
def logs_get(
    job: JobDep,
    request: Request,
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
    media = accepted(accept, (JSON, TEXT))
    if media is None:
        raise NotAcceptable(f"Logs come as {JSON} or {TEXT}.")
    source = service.log_of(session, services, job, attempt, stream)
    if media == JSON:
        piece = service.piece_of(source, offset)
        return Response(LogOut.model_validate(piece).model_dump_json(), media_type=JSON)
    # A log grows: there is no entity tag that a range could be held against.
    wanted = byte_range(request.headers.get("range"), None, etag="", size=source.size)
    start, stop = wanted or (0, source.size)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{source.size}"
    return StreamingResponse(
        source.inert(start, stop), status_code=206 if wanted else 200, media_type=TEXT, headers=headers
    )
