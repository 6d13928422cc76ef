"""The manifest of a finished student, as it goes out."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from api.http.schema import Out


class ManifestFileOut(Out):
    name: str
    bytes: int
    sha256: str


class ArtifactOut(Out):
    """The finished student: what it consists of. Each file is at `files/{name}`, all of them at `?format=tar`."""

    object: Literal["job.artifact"] = "job.artifact"
    job: str = Field(validation_alias="job_id")
    student_model: str | None = Field(validation_alias="model_id")
    bytes: int
    parameters: int | None
    teacher_parameters: int | None
    manifest_sha256: str
    created_at: datetime
    files: list[ManifestFileOut]
