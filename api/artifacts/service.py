"""The finished student as something to download: files by their names in the manifest, or one tar."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.conditional import none_match
from api.downloads import content_disposition, file_response, read_chunks
from api.problems import InProgress, NotFound
from minillm_core.spec import MANIFEST_FILE, Manifest, ManifestFile
from store.settings import Settings
from store.states import TERMINAL, JobState
from store.tables import Job

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
        for entry in self.manifest.files:
            if entry.name == name:
                return entry
        raise NotFound(f"The student has no file {name!r}; its manifest lists those it has.", param="name")

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
    """All files under a folder named by the job, and the manifest, as an uncompressed tar of known length."""
    etag = f'"{student.manifest_sha256}.tar"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    modified = int(datetime.fromisoformat(student.manifest.created_at).timestamp())
    manifest_bytes = student.manifest_text.encode()
    parts: list[tuple[bytes, Path | bytes, int]] = []
    for entry in student.manifest.files:
        path = student.path(entry)
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise NotFound(f"The bytes of {entry.name} are no longer on this machine.", code="content_gone")
        parts.append((_tar_header(f"{student.job_id}/{entry.name}", entry.bytes, modified), path, entry.bytes))
    if all(entry.name != MANIFEST_FILE for entry in student.manifest.files):
        header = _tar_header(f"{student.job_id}/{MANIFEST_FILE}", len(manifest_bytes), modified)
        parts.append((header, manifest_bytes, len(manifest_bytes)))
    length = sum(len(header) + size + _padding(size) for header, _, size in parts) + 2 * tarfile.BLOCKSIZE
    headers["Content-Length"] = str(length)
    headers["Content-Disposition"] = content_disposition(f"{student.job_id}.tar")
    return StreamingResponse(_tar_chunks(parts), headers=headers, media_type="application/x-tar")


def _tar_header(name: str, size: int, modified: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, modified, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE


def _tar_chunks(parts: list[tuple[bytes, Path | bytes, int]]) -> Iterator[bytes]:
    for header, content, size in parts:
        yield header
        if isinstance(content, bytes):
            yield content
        else:
            yield from read_chunks(content, 0, size)
        yield bytes(_padding(size))
    yield bytes(2 * tarfile.BLOCKSIZE)
