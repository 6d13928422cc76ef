"""Every table. Rows are plain: no relationships, so nothing is loaded behind a caller's back.

Times end in ``_at``, are aware UTC and come from the database's clock. Paths are relative to
``Settings.data_dir`` unless said otherwise.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    column,
    desc,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from minillm_core.spec.versions import FAILURE, REPORT
from store.db.types import Json, LookupText, UtcDateTime, VersionedJson, Word
from store.jobs.vocabulary import ArtifactKind, ArtifactState, AttemptState, DesiredState, JobState, Keep

Id = LookupText(40)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        dt.datetime: UtcDateTime(),
        dict[str, Any]: Json,
        dict[str, str]: Json,
        dict[str, float]: Json,
        list[str]: Json,
        list[dict[str, str]]: Json,
        JobState: Word(JobState),
        DesiredState: Word(DesiredState),
        Keep: Word(Keep),
        AttemptState: Word(AttemptState),
        ArtifactKind: Word(ArtifactKind),
        ArtifactState: Word(ArtifactState),
        str: Text(),
        float: Float(53),
        int: BigInteger(),
    }


def _of_the_deleting(name: str) -> Index:
    """A partial index of the few rows that every sweep looks for."""
    condition = column("deleting", Boolean()).is_(True)
    return Index(name, "id", sqlite_where=condition, postgresql_where=condition)


class Job(Base):
    """One distillation job: the row that is queue, lease and truth at once.

    ``state`` changes only through :func:`store.jobs.transitions.apply`. Every ORM update raises ``version``.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id)
    kind: Mapped[str] = mapped_column(String(32), server_default="distillation")
    """One of :data:`store.jobs.kinds.KINDS`."""
    name: Mapped[str | None]
    spec: Mapped[str]
    """The :class:`minillm_core.spec.JobSpec` as JSON text, as accepted: :mod:`minillm_core.spec.versions` reads it."""
    user_metadata: Mapped[dict[str, str]] = mapped_column("metadata")
    seed: Mapped[int]

    state: Mapped[JobState]
    phase: Mapped[str | None]
    """What the current attempt is doing; None while none runs."""
    desired_state: Mapped[DesiredState]
    desired_at: Mapped[dt.datetime | None]
    """When the user last asked for something else."""
    keep: Mapped[Keep | None]
    """What a cancel shall leave of the checkpoints."""
    priority: Mapped[int]
    not_before: Mapped[dt.datetime | None]
    """Backoff: no claim before this time."""
    dispatched_at: Mapped[dt.datetime | None]
    """When the queued job was last announced through the broker."""

    attempt: Mapped[int]
    """Number of the newest attempt; 0 before the first."""
    fence: Mapped[int]
    """Only rises. A writer that names an older one is refused."""
    max_attempts: Mapped[int]
    retries: Mapped[int]
    """Infrastructure failures since the start or the user's last retry; below `max_attempts` they are retried."""
    stalled: Mapped[int]
    """How many of those in a row came no further than the job had already been."""
    resume_after_attempt: Mapped[int]
    """Checkpoints of attempts up to this number are not resumed from (retry from the start)."""
    forked_from: Mapped[str | None] = mapped_column(Id)
    """The checkpoint this job begins from."""
    max_runtime_seconds: Mapped[int | None]
    deadline_at: Mapped[dt.datetime | None]
    """Set by the first claim where `max_runtime_seconds` is given."""
    gpus: Mapped[int] = mapped_column(server_default="1")
    """Accelerators it needs of a worker that has any; at least 1."""
    gpu_memory: Mapped[int | None]
    """Bytes that each of them must have."""
    lease_owner: Mapped[str | None] = mapped_column(Id)
    lease_expires_at: Mapped[dt.datetime | None]

    step: Mapped[int | None]
    total_steps: Mapped[int | None]
    fraction: Mapped[float]
    """Share of the whole job that is done, 0 to 1."""
    furthest_fraction: Mapped[float]
    """The largest `fraction` of all attempts."""
    tokens_per_second: Mapped[float | None]
    seconds_left: Mapped[float | None]
    """The trainer's estimate, as of `progress_at`."""
    progress_at: Mapped[dt.datetime | None]
    metrics: Mapped[dict[str, float]]
    """The latest value of each metric."""

    failure: Mapped[dict[str, Any] | None] = mapped_column(VersionedJson(FAILURE))
    """A :class:`minillm_core.spec.Failure`; also set while the job waits for a retry, until the next claim."""
    report: Mapped[dict[str, Any] | None] = mapped_column(VersionedJson(REPORT))
    teacher_parameters: Mapped[int | None]
    keep_checkpoints: Mapped[int]

    event_seq: Mapped[int]
    """Sequence number of the newest event."""
    version: Mapped[int] = mapped_column()
    """Raised by every update but the renewal of a lease: the ETag."""
    deleting: Mapped[bool]
    created_at: Mapped[dt.datetime]
    started_at: Mapped[dt.datetime | None]
    finished_at: Mapped[dt.datetime | None]
    updated_at: Mapped[dt.datetime]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy reads it from the class
    __table_args__ = (
        # The queue in its order, by which a claim finds its head and a place in it is counted.
        Index("ix_jobs_queue", "state", desc("priority"), "created_at", "id"),
        Index("ix_jobs_owner_id_created_at_id", "owner_id", "created_at", "id"),
        Index("ix_jobs_owner_id_state_created_at_id", "owner_id", "state", "created_at", "id"),
        Index("ix_jobs_lease_expires_at", "lease_expires_at"),
        Index("ix_jobs_state_deadline_at", "state", "deadline_at"),
        Index("ix_jobs_forked_from", "forked_from"),
        _of_the_deleting("ix_jobs_deleting"),
    )


class JobReference(Base):
    """A model, adapter or file that a job names (:mod:`minillm_core.spec.references`)."""

    __tablename__ = "job_references"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    reference: Mapped[str] = mapped_column(LookupText(500), primary_key=True)

    __table_args__ = (Index("ix_job_references_reference_job_id", "reference", "job_id"),)


class Attempt(Base):
    """One run of a job by one worker."""

    __tablename__ = "attempts"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"))
    number: Mapped[int]
    fence: Mapped[int]
    state: Mapped[AttemptState]
    worker_id: Mapped[str] = mapped_column(Id)
    host: Mapped[str]
    supervisor_pid: Mapped[int]
    pid: Mapped[int | None]
    """The trainer's process, which leads its own group and session."""
    pid_started: Mapped[int | None]
    """Start time of `pid` in clock ticks since boot (field 22 of /proc/<pid>/stat): tells a reused pid."""
    started_at: Mapped[dt.datetime]
    heartbeat_at: Mapped[dt.datetime]
    progress_at: Mapped[dt.datetime | None]
    ended_at: Mapped[dt.datetime | None]
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    failure: Mapped[dict[str, Any] | None] = mapped_column(VersionedJson(FAILURE))
    """A :class:`minillm_core.spec.Failure`; `category` is the failure class."""
    phase: Mapped[str | None]
    step: Mapped[int | None]
    advanced: Mapped[bool]
    """Whether it came further than every attempt before it."""
    recorded_seq: Mapped[int]
    """Sequence number of the newest trainer event that is in the store."""
    resumed_from: Mapped[str | None]
    """Path of the checkpoint it began from, as the trainer said."""
    log_tail: Mapped[str | None]
    """The last 64 kB of the output of an attempt that failed."""

    __table_args__ = (UniqueConstraint("job_id", "number"),)


class Event(Base):
    """Something that happened to a job, in the order of ``seq`` (1, 2, 3 ... within the job)."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(Id, unique=True)
    type: Mapped[str] = mapped_column(String(32))
    """`state`, `phase`, `checkpoint`, `checkpoint_removed`, `student`, `failure`, `message` or `request`."""
    level: Mapped[str] = mapped_column(String(16))
    code: Mapped[str] = mapped_column(String(100))
    """For `state` the new state, else a stable snake_case name."""
    message: Mapped[str]
    data: Mapped[dict[str, Any]]
    attempt: Mapped[int | None]
    created_at: Mapped[dt.datetime]


class MetricPoint(Base):
    """All the measurements of one step of one attempt that came in one trainer event."""

    __tablename__ = "metric_points"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    """Sequence number of the trainer event."""
    phase: Mapped[str] = mapped_column(String(32))
    step: Mapped[int]
    values: Mapped[dict[str, float]]
    names_key: Mapped[int | None]
    """The same in points of a job that measured the same names: series are thinned by it."""
    created_at: Mapped[dt.datetime]

    __table_args__ = (Index("ix_metric_points_job_id_phase_step_names_key", "job_id", "phase", "step", "names_key"),)


class Checkpoint(Base):
    """A checkpoint that was complete on disk when it was recorded."""

    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    phase: Mapped[str] = mapped_column(String(32))
    step: Mapped[int]
    path: Mapped[str]
    """Folder, relative to the RUN_DIR of its attempt."""
    bytes: Mapped[int]
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    best: Mapped[bool]
    resumable: Mapped[bool]
    pinned: Mapped[bool]
    expires_at: Mapped[dt.datetime | None]
    metrics: Mapped[dict[str, float]]
    deleting: Mapped[bool]
    created_at: Mapped[dt.datetime]

    __table_args__ = (
        UniqueConstraint("job_id", "attempt", "path"),
        Index("ix_checkpoints_expires_at", "expires_at"),
        _of_the_deleting("ix_checkpoints_deleting"),
    )


class Artifact(Base):
    """An output of a job that its trainer has committed, such as the student."""

    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    kind: Mapped[ArtifactKind]
    state: Mapped[ArtifactState]
    path: Mapped[str]
    """Folder, relative to the RUN_DIR of its attempt."""
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    manifest: Mapped[str | None]
    """The verified :class:`minillm_core.spec.Manifest`, as JSON text."""
    bytes: Mapped[int]
    parameters: Mapped[int | None]
    """Of a model."""
    model_id: Mapped[str | None] = mapped_column(Id)
    """How the registry of models has it."""
    created_at: Mapped[dt.datetime]

    __table_args__ = (UniqueConstraint("job_id", "attempt", "kind", "path"),)


class File(Base):
    """An uploaded file; its content is the blob named by its id."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id)
    filename: Mapped[str]
    purpose: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    lines: Mapped[int | None]
    deleting: Mapped[bool]
    expires_at: Mapped[dt.datetime | None]
    created_at: Mapped[dt.datetime]

    __table_args__ = (
        Index("ix_files_owner_id_created_at_id", "owner_id", "created_at", "id"),
        Index("ix_files_expires_at", "expires_at"),
        _of_the_deleting("ix_files_deleting"),
    )


class Model(Base):
    """A model: a folder found under the models root, or a student that a job made."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_id: Mapped[str | None] = mapped_column(Id)
    """None: everyone may use it."""
    reference: Mapped[str] = mapped_column(LookupText(500), unique=True)
    """How a spec names it: `path:<name>` or `model_...`."""
    kind: Mapped[str] = mapped_column(String(16))
    """`base`, `adapter` or `student`."""
    name: Mapped[str]
    path: Mapped[str]
    """Folder: under the data folder for `student`, else under the models root."""
    job_id: Mapped[str | None] = mapped_column(Id)
    revision: Mapped[str | None]
    architecture: Mapped[str]
    causal_lm: Mapped[bool]
    parameters: Mapped[int]
    layers: Mapped[int]
    vocab_size: Mapped[int]
    context_length: Mapped[int | None]
    tokenizer_fingerprint: Mapped[str | None]
    dtype: Mapped[str | None]
    bytes: Mapped[int]
    problems: Mapped[list[dict[str, str]] | None]
    """Why it cannot be used, as `code` and `detail`; None where it can."""
    created_at: Mapped[dt.datetime]

    __table_args__ = (Index("ix_models_created_at_id", "created_at", "id"),)


class ApiKey(Base):
    """An API key; only its HMAC is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id)
    name: Mapped[str]
    hint: Mapped[str] = mapped_column(String(16))
    """The first characters, to tell keys apart."""
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[dt.datetime]
    last_used_at: Mapped[dt.datetime | None]
    expires_at: Mapped[dt.datetime | None]
    revoked_at: Mapped[dt.datetime | None]


class IdempotencyKey(Base):
    """What a request with an Idempotency-Key was answered, for 24 hours."""

    __tablename__ = "idempotency_keys"

    owner_id: Mapped[str] = mapped_column(Id, primary_key=True)
    method: Mapped[str] = mapped_column(String(16), primary_key=True)
    path: Mapped[str] = mapped_column(LookupText(500), primary_key=True)
    key: Mapped[str] = mapped_column(LookupText(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]
    """HTTP status of the answer; None while the first request is at work."""
    body: Mapped[str | None]
    created_at: Mapped[dt.datetime]
    expires_at: Mapped[dt.datetime] = mapped_column(index=True)


class Worker(Base):
    """A worker process that takes jobs."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    slots: Mapped[int]
    devices: Mapped[dict[str, Any]]
    """What it found to compute on, as it described it."""
    heartbeat_seconds: Mapped[float]
    """Its own interval: late after three of them."""
    started_at: Mapped[dt.datetime]
    heartbeat_at: Mapped[dt.datetime]
    stopped_at: Mapped[dt.datetime | None]
    draining: Mapped[bool]
    slot_dirty: Mapped[str | None]
    """Why it refuses new jobs although it is idle, such as a dead job that still holds the accelerator."""
