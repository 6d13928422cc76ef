"""/v1/jobs/{id}/artifact: the finished student, by file or as one tar."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.artifacts.schemas import ArtifactOut, ManifestFileOut
from api.artifacts.service import student_file, student_of, student_tar
from api.auth import CallerDep
from api.deps import ReadSession, ServicesDep, TransactionRoute
from api.http.conditional import none_match
from api.http.openapi import problems
from api.jobs.service import live_job

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
    job_id: str,
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    session: ReadSession,
    format: Annotated[Literal["json", "tar"], Query(description="`tar`: every file, streamed.")] = "json",
) -> Response:
    """409 `artifact_not_ready` while the job is at work, 404 `no_artifact` where it ended without a student.

    The tar holds one folder named by the job; it is not compressed, and a `Range` of it goes on where one broke off.
    """
    job = live_job(session, caller.owner_id, job_id)
    student = student_of(job, services.settings)
    if format == "tar":
        return student_tar(request, student)
    etag = f'"{student.manifest_sha256}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    out = ArtifactOut(
        object="job.artifact",
        job=job.id,
        student_model=job.student_model_id,
        bytes=sum(file.bytes for file in student.manifest.files),
        parameters=job.student_parameters,
        teacher_parameters=job.teacher_parameters,
        manifest_sha256=student.manifest_sha256,
        created_at=datetime.fromisoformat(student.manifest.created_at),
        files=[ManifestFileOut(**file.model_dump()) for file in student.manifest.files],
    )
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
def artifacts_file(
    job_id: str, name: str, request: Request, caller: CallerDep, services: ServicesDep, session: ReadSession
) -> Response:
    """By its name in the manifest, or `manifest.json` itself, whose sha256 the manifest's own answer names.

    The ETag is the sha256; `Range` (one), `If-Range` and `If-None-Match` work.
    """
    job = live_job(session, caller.owner_id, job_id)
    return student_file(request, student_of(job, services.settings), name)
