"""What the service answers with. Unknown fields are kept, unknown words of an enumeration are let through:
a client of last year must be able to watch a job of next year."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
"""States that nothing leaves on its own. An unknown state counts as one that goes on."""


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    _raw: Any = PrivateAttr(default=None)

    @classmethod
    def of(cls, body: Any) -> Self:
        """The body of an answer. Raises pydantic.ValidationError where it is none of this type."""
        answer = cls.model_validate(body)
        answer._raw = body
        return answer

    @property
    def raw(self) -> Any:
        """What the service answered, as it came; None of what came within another answer."""
        return self._raw


class Progress(Answer):
    step: int = 0
    total_steps: int | None = None
    fraction: float = 0.0
    """Share of the whole job, 0 to 1."""
    tokens_per_second: float | None = None
    seconds_left: float | None = None


class Failure(Answer):
    code: str
    category: str = "system"
    message: str = ""
    param: str | None = None
    retryable: bool = False
    attempt: int | None = None


class Job(Answer):
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


class JobWarning(Answer):
    """What may keep a job from running although nothing is wrong with it."""

    code: str
    param: str | None = None
    detail: str


class NewJob(Job):
    warnings: list[JobWarning] = Field(default_factory=list)


class Event(Answer):
    seq: int
    type: str
    level: str = "info"
    code: str | None = None
    message: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    attempt: int | None = None
    created_at: datetime | None = None


class MetricPoint(Answer):
    attempt: int = 1
    phase: str = ""
    step: int
    values: dict[str, float | None] = Field(default_factory=dict)
    created_at: datetime | None = None


class Checkpoint(Answer):
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


class Attempt(Answer):
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


class File(Answer):
    id: str
    filename: str = ""
    purpose: str = ""
    bytes: int = 0
    sha256: str | None = None
    lines: int | None = None
    created_at: datetime | None = None


class ModelProblem(Answer):
    code: str
    detail: str


class Model(Answer):
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


class ManifestFile(Answer):
    name: str
    bytes: int
    sha256: str


class Manifest(Answer):
    """The files of a finished student, those that its `manifest.json` lists."""

    manifest_sha256: str
    files: list[ManifestFile]
    bytes: int | None = None
    parameters: int | None = None
    teacher_parameters: int | None = None


class LogChunk(Answer):
    """A piece of an attempt's output."""

    text: str
    next_offset: int
    """Byte at which the next piece starts."""
    attempt: int | None = None
    offset: int | None = None
    size: int | None = None
    """Bytes of the log at the moment of the answer."""


class DryRun(Answer):
    """What the service found in a spec without making a job of it."""

    spec: dict[str, Any]
    """With every default filled in."""
    method: dict[str, Any] | None = None
    """The settings of MiniLLM with its recipe applied; None for other methods."""
    teacher: dict[str, Any] = Field(default_factory=dict)
    student: dict[str, Any] = Field(default_factory=dict)
    dataset: dict[str, Any] = Field(default_factory=dict)
    warnings: list[JobWarning] = Field(default_factory=list)


class Worker(Answer):
    id: str
    host: str = ""
    pid: int | None = None
    slots: int | None = None
    devices: dict[str, Any] = Field(default_factory=dict)
    online: bool = True
    """Neither stopped nor silent for long."""
    draining: bool = False
    """It takes no more jobs."""
    slot_dirty: str | None = None
    """Why it refuses jobs although it is idle."""
    heartbeat_age_seconds: float | None = None
    started_at: datetime | None = None
    heartbeat_at: datetime | None = None
    stopped_at: datetime | None = None


class ApiKey(Answer):
    """A key without its secret part."""

    id: str
    name: str = ""
    owner_id: str = ""
    hint: str | None = None
    """How the key begins."""
    scopes: list[str] = Field(default_factory=list)
    created_at: datetime | None = None
    last_used_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class NewApiKey(ApiKey):
    key: str
    """The key itself, which the service does not keep."""


class Health(Answer):
    status: str


class Readiness(Answer):
    status: str
    """`ready`, or `degraded` without the broker."""
    checks: dict[str, str] = Field(default_factory=dict)
