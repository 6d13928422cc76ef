"""The manifest of a finished student, as it goes out."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from api.http.schema import Out


class ManifestFileOut(Out):
    name: str
    bytes: int
    sha256: str


class ArtifactOut(Out):
    """The finished student: what it consists of. Each file is at `files/{name}`, all of them at `?format=tar`."""

    object: Literal["job.artifact"]
    job: str
    student_model: str | None
    bytes: int
    parameters: int | None
    teacher_parameters: int | None
    manifest_sha256: str
    created_at: datetime
    files: list[ManifestFileOut]
