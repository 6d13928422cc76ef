"""Takes an upload in: every line checked, the bytes kept whole or not at all, then the row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from api.http.disk import require_space
from api.http.middleware.body_limit import file_too_large
from api.http.problems import Invalid, NotFound
from api.services import Services
from minillm_core.spec.rows import BadRows, check_file
from store.bytes.blobs import BlobTooLarge
from store.db.ids import new_id
from store.db.tables import File
from store.files import FileRepository
from store.quotas import check_stored

_CHUNK_BYTES = 1 << 20
MAX_FILENAME = 255


def rows_problem(error: BadRows, *, param: str) -> Invalid:
    reason = str(error)
    return Invalid(
        reason[:1].upper() + reason[1:], code="dataset_invalid", param=param, extensions={"line": error.line}
    )


def keep_upload(services: Services, *, owner_id: str, stream: BinaryIO, filename: str, purpose: str) -> File:
    """Raises Invalid for rows that are not as `purpose` needs them, TooLarge, InsufficientStorage, QuotaExceeded."""
    if len(filename) > MAX_FILENAME:
        raise Invalid(f"A file name has at most {MAX_FILENAME} characters.", param="/file")
    try:
        lines = check_file(stream, purpose=purpose)
    except BadRows as error:
        raise rows_problem(error, param="/file") from None
    size = stream.seek(0, 2)
    stream.seek(0)
    limit = services.settings.max_file_bytes
    if size > limit:
        raise file_too_large(limit)
    require_space(services.settings, size)
    if services.settings.max_stored_bytes:
        # Before anything is written; and once more with what others upload meanwhile.
        with services.database.read() as session:
            check_stored(session, owner_id, services.settings.max_stored_bytes, more=size)
    file_id = new_id("file")
    try:
        blob = services.blobs.put(file_id, _chunks(stream), limit=limit)
    except BlobTooLarge:
        raise file_too_large(limit) from None
    try:
        with services.database.write() as session:
            row = FileRepository(session).create(
                id=file_id,
                owner_id=owner_id,
                filename=filename,
                purpose=purpose,
                bytes=blob.bytes,
                sha256=blob.sha256,
                lines=lines,
            )
            check_stored(session, owner_id, services.settings.max_stored_bytes)
            return row
    except BaseException:
        services.blobs.delete(file_id)
        raise


def content_path(services: Services, file: File) -> Path:
    """Where the bytes lie. Raises NotFound where they are gone."""
    try:
        return services.blobs.path(file.id)
    except FileNotFoundError:
        raise NotFound(f"The bytes of {file.filename} are no longer on this machine.", code="content_gone") from None


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk
