"""/v1/files: upload, list, read and delete datasets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile

from api.auth import CallerDep
from api.deps import ReadSession, ServicesDep, TransactionRoute, UploadTurn, WriteSession
from api.files.schemas import FileDeleted, FileOut, Purpose
from api.files.service import content_path, keep_upload
from api.http.openapi import problems
from api.http.pagination import After, Before, Limit, Order, Page, cursor_problems, page
from api.http.parameters import only_known_parts
from api.http.ranges import send_file
from minillm_core.spec.rows import CALIBRATION_SHAPES, CORPUS_SHAPES, DATASET_SHAPES, FILES
from store.files import FileRepository

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["files"])

_UPLOAD_EXAMPLE = {
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "example": {
                    "file": '{"instruction": "Name a prime.", "output": "Seven."}\n',
                    "purpose": "dataset",
                }
            }
        }
    }
}


@router.post(
    "/files",
    status_code=201,
    responses=problems(400, 401, 413, 415, 422, 429, 503, 507),
    dependencies=[Depends(only_known_parts), UploadTurn],
    summary="Upload a file",
    description=f"Every row is checked before the file is accepted. Files of rows are {FILES}. "
    f"{DATASET_SHAPES} {CORPUS_SHAPES} {CALIBRATION_SHAPES} Blank lines are skipped.",
    openapi_extra=_UPLOAD_EXAMPLE,
)
def files_create(
    caller: CallerDep,
    services: ServicesDep,
    response: Response,
    file: Annotated[UploadFile, File(description="The content, UTF-8.")],
    purpose: Annotated[Purpose, Form(description="What the rows are for; `fine-tune` is `dataset`.")] = "dataset",
) -> FileOut:
    row = keep_upload(
        services, owner_id=caller.owner_id, stream=file.file, filename=file.filename or "upload", purpose=purpose
    )
    response.headers["Location"] = f"/v1/files/{row.id}"
    return FileOut.model_validate(row)


@router.get("/files", responses=problems(401, 422, 503), summary="List files")
def files_list(
    caller: CallerDep,
    session: ReadSession,
    limit: Limit = 20,
    after: After = None,
    before: Before = None,
    order: Order = "desc",
    purpose: Annotated[Purpose | None, Query()] = None,
) -> Page[FileOut]:
    with cursor_problems(after, before):
        found = FileRepository(session).list(
            caller.owner_id, limit=limit, after=after, before=before, order=order, purpose=purpose
        )
    return page(found.items, found.has_more, FileOut.model_validate, lambda file: file.id)


@router.get("/files/{file_id}", responses=problems(401, 404, 503), summary="Get a file's description")
def files_get(file_id: str, caller: CallerDep, session: ReadSession) -> FileOut:
    return FileOut.model_validate(FileRepository(session).get(caller.owner_id, file_id))


@router.get(
    "/files/{file_id}/content",
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The bytes."},
        206: {"description": "The range asked for."},
        304: {"description": "Not changed."},
        **problems(401, 404, 416, 503),
    },
    response_class=Response,
    summary="Download a file",
)
def files_content(
    file_id: str, request: Request, caller: CallerDep, services: ServicesDep, session: ReadSession
) -> Response:
    """The bytes as uploaded. The ETag is their sha256; `Range` (one), `If-Range` and `If-None-Match` work."""
    row = FileRepository(session).get(caller.owner_id, file_id)
    return send_file(
        request,
        content_path(services, row),
        sha256=row.sha256,
        size=row.bytes,
        name=row.filename,
        media_type="application/octet-stream",
    )


@router.delete("/files/{file_id}", responses=problems(401, 404, 409, 503), summary="Delete a file")
def files_delete(file_id: str, caller: CallerDep, session: WriteSession) -> FileDeleted:
    """Refused with 409 while an unfinished job uses it."""
    files = FileRepository(session)
    files.request_delete(files.get(caller.owner_id, file_id))
    return FileDeleted(id=file_id)
