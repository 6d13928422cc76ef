"""/v1/jobs/{id}/artifact: the finished student, by file or as one tar."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.artifacts import service
from api.artifacts.schemas import ArtifactOut
from api.deps import JobDep, ReadSession, ServicesDep, TransactionRoute
from api.http.openapi import problems
from api.http.ranges import Content, none_match, send, send_file

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["artifacts"])


@router.get(
    "/jobs/{job_id}/artifact",
    response_model=ArtifactOut,
    responses={
        200: {"content": {"application/x-tar": {}}, "description": "The manifest, or with `format=tar` all files."},
        206: {"description": "The range of the tar asked for."},
        304: {"description": "Not changed."},
        **problems(401, 404, 409, 416, 422, 503),
    },
    summary="Get the manifest of a job's student, or all of it",
)
def artifacts_get(
    job: JobDep,
    request: Request,
    services: ServicesDep,
    session: ReadSession,
    format: Annotated[Literal["json", "tar"], Query(description="`tar`: every file, streamed.")] = "json",
) -> Response:
    """409 `artifact_not_ready` while the job is at work, 404 `no_artifact` where it ended without a student.

    The tar holds one folder named by the job; it is not compressed, and a `Range` of it goes on where one broke off.
    """
    student = service.student_of(session, job, services.settings)
    if format == "tar":

        def content() -> Content:
            tar = service.tar_of(student)
            return Content(tar.size, tar.read)

        etag = f'"{student.manifest_sha256}.tar"'
        return send(request, content, etag=etag, name=f"{job.id}.tar", media_type="application/x-tar")
    etag = f'"{student.manifest_sha256}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    out = ArtifactOut.model_validate(student)
    return Response(out.model_dump_json(), headers=headers, media_type="application/json")


@router.get(
    "/jobs/{job_id}/artifact/files/{name:path}",
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file."},
        206: {"description": "The range asked for."},
        304: {"description": "Not changed."},
        **problems(401, 404, 409, 416, 503),
    },
    response_class=Response,
    summary="Download a file of a job's student",
)
def artifacts_file(job: JobDep, name: str, request: Request, services: ServicesDep, session: ReadSession) -> Response:
    """By its name in the manifest, or `manifest.json` itself, whose sha256 the manifest's own answer names.

    The ETag is the sha256; `Range` (one), `If-Range` and `If-None-Match` work.
    """
    student = service.student_of(session, job, services.settings)
    entry = student.file(name)
    return send_file(
        request,
        student.path(entry),
        sha256=entry.sha256,
        size=entry.bytes,
        name=entry.name.rsplit("/", 1)[-1],
        media_type=service.media_type(entry),
    )
