"""The finished student as something to download: files by their names in the manifest, or one tar."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from api.http.problems import InProgress, NotFound
from api.http.ranges import read_chunks
from minillm_core.spec import MANIFEST_FILE, Manifest, ManifestFile
from store.bytes.runs import Runs
from store.db.tables import Job
from store.jobs.artifacts import ArtifactRepository
from store.jobs.transitions import TERMINAL, JobState
from store.jobs.vocabulary import ArtifactKind
from store.settings import Settings

_MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown", ".txt": "text/plain", ".jinja": "text/plain"}


@dataclass(frozen=True)
class Student:
    job_id: str
    model_id: str | None
    folder: Path
    manifest: Manifest
    manifest_text: str
    manifest_sha256: str
    created_at: datetime
    parameters: int | None
    teacher_parameters: int | None

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.manifest.files)

    @property
    def files(self) -> list[ManifestFile]:
        return self.manifest.files

    def file(self, name: str) -> ManifestFile:
        """The manifest's entry of this exact name. Nothing else of a name ever reaches the file system."""
        for entry in self.all_files():
            if entry.name == name:
                return entry
        raise NotFound(f"The student has no file {name!r}; its manifest lists those it has.", param="name")

    def all_files(self) -> list[ManifestFile]:
        """The files of the manifest, and the manifest itself, which is not in its own list."""
        size = len(self.manifest_text.encode())
        return [*self.files, ManifestFile(name=MANIFEST_FILE, bytes=size, sha256=self.manifest_sha256)]

    def path(self, entry: ManifestFile) -> Path:
        """Where the bytes lie. Raises NotFound where a link leads out of the student's folder."""
        path = (self.folder / entry.name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise NotFound(f"The student has no file {entry.name!r}.", param="name")
        return path


def student_of(session: Session, job: Job, settings: Settings) -> Student:
    """The student of a job. Raises InProgress where it has none yet, NotFound where it will have none."""
    artifact = ArtifactRepository(session).verified(job, ArtifactKind.STUDENT)
    if artifact is None or artifact.manifest is None:
        if job.state in TERMINAL:
            raise NotFound(f"This job {_ENDINGS[job.state]} and has no student.", code="no_artifact")
        raise InProgress(f"The student is not finished yet: the job is {job.state}.", code="artifact_not_ready")
    manifest = Manifest.shown(artifact.manifest)
    return Student(
        job_id=job.id,
        model_id=artifact.model_id,
        folder=Runs(settings.data_dir).attempt(job.id, artifact.attempt).inside(artifact.path),
        manifest=manifest,
        manifest_text=artifact.manifest,
        manifest_sha256=artifact.manifest_sha256,
        created_at=_time(manifest.created_at) or job.updated_at,
        parameters=artifact.parameters,
        teacher_parameters=job.teacher_parameters,
    )


def _time(text: str) -> datetime | None:
    """None where another release has put something else there."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


_ENDINGS = {
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "was cancelled",
    JobState.EXPIRED: "ran out of time",
}


def media_type(entry: ManifestFile) -> str:
    return _MEDIA_TYPES.get(Path(entry.name).suffix, "application/octet-stream")


@dataclass(frozen=True)
class Tar:
    """Files in a row as an uncompressed tar, whose bytes are always the same."""

    parts: list[bytes | tuple[Path, int]]

    @property
    def size(self) -> int:
        return sum(_length(part) for part in self.parts)

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes from `start` to before `stop`."""
        for part in self.parts:
            length = _length(part)
            first, last = max(start, 0), min(stop, length)
            if first < last:
                if isinstance(part, bytes):
                    yield part[first:last]
                else:
                    yield from read_chunks(part[0], first, last)
            start, stop = start - length, stop - length


def tar_of(student: Student) -> Tar:
    """All files under a folder named by the job. Raises NotFound where bytes are gone."""
    modified = int(student.created_at.timestamp())
    parts: list[bytes | tuple[Path, int]] = []
    for entry in student.all_files():
        path = student.path(entry)
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise NotFound(f"The bytes of {entry.name} are no longer on this machine.", code="content_gone")
        header = _tar_header(f"{student.job_id}/{entry.name}", entry.bytes, modified)
        parts += [header, (path, entry.bytes), bytes(-entry.bytes % tarfile.BLOCKSIZE)]
    parts.append(bytes(2 * tarfile.BLOCKSIZE))
    return Tar(parts)


def _tar_header(name: str, size: int, modified: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, modified, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _length(part: bytes | tuple[Path, int]) -> int:
    return len(part) if isinstance(part, bytes) else part[1]
