"""/v1/jobs/{id}/metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from api.deps import JobDep, ReadSession, ServicesDep, TransactionRoute
from api.http.negotiation import ANY_TEXT, CSV, JSON, JSONL, accepted
from api.http.openapi import problems
from api.http.pagination import Page, page
from api.http.problems import Invalid, NotAcceptable
from api.metrics import downloads, service
from api.metrics.schemas import MetricOut
from store.jobs.metrics import Position

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["jobs"])


@router.get(
    "/jobs/{job_id}/metrics",
    response_model=Page[MetricOut],
    responses={
        200: {
            "content": {CSV: ANY_TEXT, JSONL: ANY_TEXT},
            "description": "All points, in the form of Accept.",
        },
        **problems(401, 404, 406, 422, 503),
    },
    summary="Get a job's measurements",
)
def metrics_list(
    job: JobDep,
    services: ServicesDep,
    session: ReadSession,
    names: Annotated[str | None, Query(max_length=2000, description="Only these metrics, by commas.")] = None,
    phase: Annotated[str | None, Query(max_length=32)] = None,
    since_step: Annotated[int, Query(ge=0, lt=2**53, description="Only steps from this one on.")] = 0,
    points: Annotated[
        int | None, Query(ge=1, le=10_000, description="Thin each series to so many, its last among them.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Most steps of a page.")] = 1000,
    after: Annotated[str | None, Query(max_length=64, description="Cursor: the `last_id` of the page before.")] = None,
    accept: Annotated[str | None, Header(description=f"`{CSV}` or `{JSONL}` for a download of all pages.")] = None,
) -> Response:
    """By phase in the order it ran, then step. Of attempts that went through the same step the newest counts."""
    wanted = [name for name in names.split(",") if name] if names is not None else None
    start = _position(after) if after is not None else None
    media = accepted(accept, (JSON, CSV, JSONL))
    if media is None:
        raise NotAcceptable(f"Metrics come as {JSON}, {CSV} or {JSONL}.")
    asked = service.Asked(names=wanted, phase=phase, since_step=since_step, points=points)
    if media == JSON:
        found = service.page_of(session, job, asked, after=start, limit=limit)
        out = page(found.items, found.has_more, MetricOut.model_validate, _cursor)
        return Response(out.model_dump_json(), media_type=JSON)
    rows = service.all_of(services.database, job, asked, after=start)
    if media == CSV:
        columns = wanted if wanted is not None else service.names_of(session, job, asked)
        return StreamingResponse(downloads.csv_lines(rows, columns), media_type=CSV)
    return StreamingResponse(downloads.json_lines(rows), media_type=JSONL)


def _cursor(point: MetricOut) -> str:
    return f"{point.phase}.{point.step}"


def _position(cursor: str) -> Position:
    phase, _, step = cursor.rpartition(".")
    if not phase or not step.isascii() or not step.isdecimal() or len(step) > 15:
        raise Invalid(f"{cursor!r} is no cursor of this list.", code="unknown_cursor", param="after")
    return phase, int(step)
