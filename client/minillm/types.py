"""What the service answers with. Unknown fields are kept, unknown words of an enumeration are let through:
a client of last year must be able to watch a job of next year."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
"""States that nothing leaves on its own. An unknown state counts as one that goes on."""


class _Tolerant(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Progress(_Tolerant):
    step: int = 0
    total_steps: int | None = None
    fraction: float = 0.0
    """Share of the whole job, 0 to 1."""
    tokens_per_second: float | None = None
    seconds_left: float | None = None


class Failure(_Tolerant):
    code: str
    category: str = "system"
    message: str = ""
    param: str | None = None
    retryable: bool = False
    attempt: int | None = None


class Job(_Tolerant):
    id: str
    name: str | None = None
    state: str
    phase: str | None = None
    desired_state: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    seed: int | None = None
    progress: Progress = Field(default_factory=Progress)
    queue_position: int | None = None
    metrics: dict[str, float | None] = Field(default_factory=dict)
    """Latest value of each."""
    attempt: int = 0
    failure: Failure | None = None
    report: dict[str, Any] | None = None
    student_model: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL


class Event(_Tolerant):
    seq: int
    type: str
    level: str = "info"
    code: str | None = None
    message: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    attempt: int | None = None
    created_at: datetime | None = None


class MetricPoint(_Tolerant):
    attempt: int = 1
    phase: str = ""
    step: int
    values: dict[str, float | None] = Field(default_factory=dict)
    created_at: datetime | None = None


class Checkpoint(_Tolerant):
    id: str
    attempt: int | None = None
    phase: str | None = None
    step: int
    bytes: int | None = None
    best: bool = False
    resumable: bool = True
    pinned: bool = False
    expires_at: datetime | None = None
    metrics: dict[str, float | None] = Field(default_factory=dict)
    created_at: datetime | None = None


class Attempt(_Tolerant):
    """One run of a job by one worker."""

    id: str
    attempt: int
    """1, 2, 3 ... within the job."""
    state: str
    worker_id: str | None = None
    host: str | None = None
    pid: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    failure: Failure | None = None
    phase: str | None = None
    step: int | None = None
    started_at: datetime | None = None
    heartbeat_at: datetime | None = None
    ended_at: datetime | None = None


class File(_Tolerant):
    id: str
    filename: str = ""
    purpose: str = ""
    bytes: int = 0
    sha256: str | None = None
    lines: int | None = None
    created_at: datetime | None = None


class ModelProblem(_Tolerant):
    code: str
    detail: str


class Model(_Tolerant):
    id: str
    reference: str | None = None
    """How a job names it."""
    kind: str | None = None
    name: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    layers: int | None = None
    context_length: int | None = None
    usable: bool = True
    problems: list[ModelProblem] = Field(default_factory=list)
    """Why a job cannot name it."""


class ManifestFile(_Tolerant):
    name: str
    bytes: int
    sha256: str


class Manifest(_Tolerant):
    """The files of a finished student, those that its `manifest.json` lists."""

    manifest_sha256: str
    files: list[ManifestFile]


class LogChunk(_Tolerant):
    """A piece of an attempt's output."""

    text: str
    next_offset: int
    """Byte at which the next piece starts."""
    attempt: int | None = None
