"""The finished student as something to download: files by their names in the manifest, or one tar."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.http.conditional import byte_range, none_match
from api.http.downloads import content_disposition, file_response, read_chunks
from api.http.problems import InProgress, NotFound
from minillm_core.spec import MANIFEST_FILE, Manifest, ManifestFile
from store.db.tables import Job
from store.jobs.transitions import TERMINAL, JobState
from store.settings import Settings

_TAR = "application/x-tar"
_MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown", ".txt": "text/plain", ".jinja": "text/plain"}


@dataclass(frozen=True)
class Student:
    job_id: str
    folder: Path
    manifest: Manifest
    manifest_text: str
    manifest_sha256: str

    def file(self, name: str) -> ManifestFile:
        """The manifest's entry of this exact name. Nothing else of a name ever reaches the file system."""
        for entry in self.all_files():
            if entry.name == name:
                return entry
        raise NotFound(f"The student has no file {name!r}; its manifest lists those it has.", param="name")

    def all_files(self) -> list[ManifestFile]:
        """The files of the manifest, and the manifest itself, which is not in its own list."""
        size = len(self.manifest_text.encode())
        return [*self.manifest.files, ManifestFile(name=MANIFEST_FILE, bytes=size, sha256=self.manifest_sha256)]

    def path(self, entry: ManifestFile) -> Path:
        """Where the bytes lie. Raises NotFound where a link leads out of the student's folder."""
        path = (self.folder / entry.name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise NotFound(f"The student has no file {entry.name!r}.", param="name")
        return path


def student_of(job: Job, settings: Settings) -> Student:
    """The student of a job. Raises InProgress where it has none yet, NotFound where it will have none."""
    if job.student_path is None or job.student_manifest is None or job.student_manifest_sha256 is None:
        if job.state in TERMINAL:
            raise NotFound(f"This job {_ENDINGS[job.state]} and has no student.", code="no_artifact")
        raise InProgress(f"The student is not finished yet: the job is {job.state}.", code="artifact_not_ready")
    return Student(
        job_id=job.id,
        folder=settings.data_dir / job.student_path,
        manifest=Manifest.model_validate_json(job.student_manifest),
        manifest_text=job.student_manifest,
        manifest_sha256=job.student_manifest_sha256,
    )


_ENDINGS = {
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "was cancelled",
    JobState.EXPIRED: "ran out of time",
}


def student_file(request: Request, student: Student, name: str) -> Response:
    entry = student.file(name)
    return file_response(
        request,
        student.path(entry),
        sha256=entry.sha256,
        size=entry.bytes,
        name=entry.name.rsplit("/", 1)[-1],
        media_type=_MEDIA_TYPES.get(Path(entry.name).suffix, "application/octet-stream"),
    )


def student_tar(request: Request, student: Student) -> Response:
    """All files under a folder named by the job, as an uncompressed tar whose bytes are always the same."""
    etag = f'"{student.manifest_sha256}.tar"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    modified = int(datetime.fromisoformat(student.manifest.created_at).timestamp())
    parts: list[bytes | tuple[Path, int]] = []
    for entry in student.all_files():
        path = student.path(entry)
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise NotFound(f"The bytes of {entry.name} are no longer on this machine.", code="content_gone")
        header = _tar_header(f"{student.job_id}/{entry.name}", entry.bytes, modified)
        parts += [header, (path, entry.bytes), bytes(-entry.bytes % tarfile.BLOCKSIZE)]
    parts.append(bytes(2 * tarfile.BLOCKSIZE))
    size = sum(_length(part) for part in parts)
    wanted = byte_range(request.headers.get("range"), request.headers.get("if-range"), etag=etag, size=size)
    start, stop = wanted or (0, size)
    headers["Content-Length"] = str(stop - start)
    headers["Content-Disposition"] = content_disposition(f"{student.job_id}.tar")
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    status = 206 if wanted else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=_TAR)
    return StreamingResponse(_slice(parts, start, stop), status_code=status, headers=headers, media_type=_TAR)


def _tar_header(name: str, size: int, modified: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, modified, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _length(part: bytes | tuple[Path, int]) -> int:
    return len(part) if isinstance(part, bytes) else part[1]


def _slice(parts: Iterable[bytes | tuple[Path, int]], start: int, stop: int) -> Iterator[bytes]:
    """Bytes `start` to `stop` of all parts in a row: bytes as they are, or a file of known size."""
    for part in parts:
        length = _length(part)
        first, last = max(start, 0), min(stop, length)
        if first < last:
            if isinstance(part, bytes):
                yield part[first:last]
            else:
                yield from read_chunks(part[0], first, last)
        start, stop = start - length, stop - length
