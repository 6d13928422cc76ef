"""The words a row may hold: states, desires, causes. Data only, imported by tables and rules alike."""

from __future__ import annotations

import enum


class JobState(enum.StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL: frozenset[JobState] = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})
"""States that nothing leaves but an explicit retry of a failed or expired job."""

ALIVE: frozenset[JobState] = frozenset(JobState) - TERMINAL
"""The others. Conditions of SQL name these: no index helps to find what is not in a list."""

HELD: frozenset[JobState] = frozenset({JobState.STARTING, JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING})
"""States in which an attempt holds the lease."""


class DesiredState(enum.StrEnum):
    """What the user wants of a job; the lease holder obeys."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Keep(enum.StrEnum):
    """Which checkpoints outlive a cancelled job (pinned ones always do)."""

    BEST = "best"
    LAST = "last"
    NONE = "none"


class RetryFrom(enum.StrEnum):
    """Where a retried job begins."""

    CHECKPOINT = "checkpoint"
    START = "start"


class Cause(enum.StrEnum):
    """Why a job changes state; with the state it leaves, the key of the table of transitions."""

    CREATE = "create"
    CLAIM = "claim"
    FIRST_PROGRESS = "first_progress"
    CANCEL = "cancel"
    CANCEL_DONE = "cancel_done"
    CANCEL_GRACE_ELAPSED = "cancel_grace_elapsed"
    PAUSE = "pause"
    PAUSE_DONE = "pause_done"
    RESUME = "resume"
    INTERRUPTED = "interrupted"
    """The worker stopped the attempt for its own reasons (a deploy); no failure."""
    LEASE_EXPIRED = "lease_expired"
    USER_ERROR = "user_error"
    SYSTEM_ERROR = "system_error"
    INFRASTRUCTURE_ERROR = "infrastructure_error"
    STUDENT_COMMITTED = "student_committed"
    DEADLINE = "deadline"
    RETRY = "retry"


class ArtifactKind(enum.StrEnum):
    """What an output of a job is."""

    STUDENT = "student"


class ArtifactState(enum.StrEnum):
    """How far an output of a job can be relied upon."""

    ANNOUNCED = "announced"
    """The trainer said that it is committed."""
    VERIFIED = "verified"
    """A worker has compared every file with the manifest."""


class AttemptState(enum.StrEnum):
    """How an attempt stands or ended."""

    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"
    """Its lease expired, or it was replaced before it reported its end."""
