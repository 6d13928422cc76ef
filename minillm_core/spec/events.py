"""What the trainer says: the lines of ``events.jsonl``, failures and exit codes."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from minillm_core.spec.base import Strict

Count = Annotated[int, Field(ge=0, le=2**53)]
"""What a column of 64 bits and a number of JavaScript can hold."""


class Phase(enum.StrEnum):
    """What a running attempt is doing."""

    VALIDATING = "validating"
    PREPARING = "preparing"
    TEACHER_SFT = "teacher_sft"
    STUDENT_SFT = "student_sft"
    GENERATING = "generating"
    TRAINING = "training"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"


class FailureCategory(enum.StrEnum):
    """Whose fault a failure is: only the last is retried on its own."""

    USER = "user"
    SYSTEM = "system"
    INFRASTRUCTURE = "infrastructure"


class Failure(Strict):
    """Why an attempt or a job ended badly."""

    code: str
    """Stable snake_case name, such as `dataset_invalid`, `tokenizer_mismatch`, `out_of_memory`,
    `worker_lost`, `time_limit`, `loss_diverged`, `disk_full`, `model_unavailable`, `internal_error`."""
    category: FailureCategory
    message: str
    param: str | None = None
    """JSON pointer to the field of the spec at fault."""
    retryable: bool = False
    attempt: Count | None = None


class ExitCode(enum.IntEnum):
    """How the trainer process ends (sysexits.h where it has a fitting number)."""

    DONE = 0
    USER_ERROR = 64
    INTERNAL_ERROR = 70
    STOPPED = 75


class _Event(Strict):
    seq: Count
    """1, 2, 3 ... within one attempt."""
    time: str
    """RFC 3339, UTC."""


class PhaseEvent(_Event):
    type: Literal["phase"] = "phase"
    phase: Phase
    message: str = ""


class ProgressEvent(_Event):
    """Where the run is; written at most about once a second."""

    type: Literal["progress"] = "progress"
    phase: Phase
    step: Count
    total_steps: Count
    fraction: float
    """Share of the whole job that is done, 0 to 1."""
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    """Estimate for the whole job."""


class MetricsEvent(_Event):
    """Measurements of one step; the names are listed in docs/metrics.md."""

    type: Literal["metrics"] = "metrics"
    phase: Phase
    step: Count
    values: dict[str, float]


class CheckpointEvent(_Event):
    """A checkpoint that is complete on disk: manifest written, folder renamed."""

    type: Literal["checkpoint"] = "checkpoint"
    phase: Phase
    step: Count
    path: str
    """Folder, relative to RUN_DIR."""
    bytes: Count
    manifest_sha256: str
    best: bool = False
    """Whether it is the best so far by the criterion of its phase."""
    resumable: bool = True
    metrics: dict[str, float] = Field(default_factory=dict)


class CheckpointRemovedEvent(_Event):
    type: Literal["checkpoint_removed"] = "checkpoint_removed"
    path: str


class MessageEvent(_Event):
    type: Literal["message"] = "message"
    level: Literal["info", "warning", "error"] = "info"
    code: str
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


class StudentEvent(_Event):
    """The student is exported and its manifest verified: the last event of a run that succeeds."""

    type: Literal["student"] = "student"
    path: str
    """Folder, relative to RUN_DIR."""
    manifest_sha256: str
    bytes: Count
    parameters: Count
    teacher_parameters: Count
    report: dict[str, Any]
    """The evaluation before and after: docs/evaluation.md."""


class FailureEvent(_Event):
    type: Literal["failure"] = "failure"
    failure: Failure


TrainerEvent = Annotated[
    PhaseEvent
    | ProgressEvent
    | MetricsEvent
    | CheckpointEvent
    | CheckpointRemovedEvent
    | MessageEvent
    | StudentEvent
    | FailureEvent,
    Field(discriminator="type"),
]
_EVENT: TypeAdapter[TrainerEvent] = TypeAdapter(TrainerEvent)


def parse_event(line: str | bytes) -> TrainerEvent:
    """One line of ``events.jsonl``. Raises pydantic.ValidationError when it is none."""
    return _EVENT.validate_json(line)
