"""What goes in and out of `/v1/jobs`. Output fields have no defaults, so that OpenAPI says they are always there."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from api.http.openapi import FieldErrorOut
from api.http.schema import In, Out, Stored
from minillm_core.spec import (
    MAX_RUNTIME_SECONDS,
    CorpusSpec,
    DatasetSpec,
    EvaluationSpec,
    ExportSpec,
    Failure,
    GuardSpec,
    JobSpec,
    Metadata,
    Method,
    ResolvedMiniLLM,
    ResourceSpec,
    SchedulingSpec,
    StudentSpec,
    TeacherSpec,
    TrainingSpec,
    Whole,
)

AnyMethod = TypeAliasType("AnyMethod", Method)
"""The union with its discriminator, as one thing to be marked as stored."""


class Progress(Out):
    step: int
    total_steps: int | None
    fraction: float
    """Share of the whole job that is done, 0 to 1."""
    tokens_per_second: float | None
    seconds_left: float | None


class JobOut(Out):
    """A job: what was asked for, where it is, and how it ended."""

    id: str
    object: Literal["job"]
    kind: str
    name: str | None
    state: str
    """queued, starting, running, pausing, paused, cancelling; then succeeded, failed, cancelled or expired.
    Treat a state you do not know as one that is not terminal."""
    phase: str | None
    """What a running attempt is doing."""
    desired_state: str
    """What the user wants: run, pause or cancel."""
    metadata: Annotated[dict[str, str], Stored]
    seed: int
    teacher: Annotated[TeacherSpec, Stored]
    student: Annotated[StudentSpec, Stored]
    dataset: Annotated[DatasetSpec, Stored]
    pretrain_corpus: Annotated[CorpusSpec | None, Stored]
    method: Annotated[AnyMethod, Stored]
    training: Annotated[TrainingSpec, Stored]
    guards: Annotated[GuardSpec, Stored]
    resources: Annotated[ResourceSpec, Stored]
    scheduling: Annotated[SchedulingSpec, Stored]
    evaluation: Annotated[EvaluationSpec, Stored]
    export: Annotated[ExportSpec, Stored]
    progress: Progress
    queue_position: int | None
    """1 for the job that is claimed next; null unless queued."""
    metrics: Annotated[dict[str, float], Stored]
    """Latest value of each metric."""
    attempt: int
    failure: Annotated[Failure | None, Stored]
    report: Annotated[dict[str, Any] | None, Stored]
    """The evaluation before and after."""
    student_model: str | None
    """Id of the finished student in `/v1/models`."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime


class JobCreated(JobOut):
    """A job that has just been made."""

    warnings: list[FieldErrorOut]
    """What may keep the job from running, such as that no worker is online."""


class DryRunModel(Out):
    reference: str
    parameters: int | None
    layers: int | None
    context_length: int | None


class DryRunDataset(Out):
    file: str
    rows: int


class DryRun(Out):
    """What `POST /v1/jobs?dry_run=true` found; nothing was kept. Null figures are those of hub models not read yet."""

    object: Literal["job.dry_run"]
    spec: JobSpec
    method: ResolvedMiniLLM | None
    """The settings of MiniLLM with its recipe applied; null for other methods."""
    teacher: DryRunModel
    student: DryRunModel
    dataset: DryRunDataset
    warnings: list[FieldErrorOut]
    """What may keep the job from running, such as that no worker is online."""


class CancelIn(In):
    keep: Literal["best", "last", "none"] = "best"
    """Which checkpoint outlives the job."""


class RetryIn(In):
    start_from: Literal["checkpoint", "start"] = Field("checkpoint", alias="from")
    """`checkpoint`: the newest that verifies; `start`: from scratch."""


class ForkIn(In):
    checkpoint: str | None = Field(None, max_length=64, pattern=r"^ckpt_[a-z0-9]+$")
    """Where the new job starts; the newest checkpoint of the job when left out."""
    overrides: dict[str, Any] = Field(default_factory=dict, max_length=64)
    """Fields of the job to change, nested as in `POST /v1/jobs`; null removes one (RFC 7386)."""


class JobPatch(In):
    """Fields left out, or null, stay as they are."""

    name: str | None = Field(None, max_length=200)
    metadata: Metadata | None = None
    """Replaces all pairs."""
    priority: Annotated[int, Whole(-100, 100)] | None = None
    max_runtime_seconds: Annotated[int, Whole(1, MAX_RUNTIME_SECONDS)] | None = None
