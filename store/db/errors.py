"""What the store refuses, as exceptions. The rooms that call it decide how to say so to their users."""

from __future__ import annotations

from store.jobs.vocabulary import Cause, JobState


class StoreError(Exception):
    """Base of everything the store refuses on purpose."""


class NotFound(StoreError):
    """No such row, or it belongs to someone else: the two are told apart by nobody."""

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"{kind} {id!r} was not found")
        self.kind = kind
        self.id = id


class Conflict(StoreError):
    """The row is in no state for this request. ``code`` is a stable snake_case name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class QuotaExceeded(StoreError):
    """The owner has as much as one may have. ``policy`` is the limit's name."""

    def __init__(self, policy: str, limit: int, message: str) -> None:
        super().__init__(message)
        self.policy = policy
        self.limit = limit


class InvalidTransition(Conflict):
    """The table of transitions has no such change."""

    def __init__(self, state: JobState | None, cause: Cause, to: JobState | None = None) -> None:
        was = "that does not exist yet" if state is None else f"that is {state}"
        super().__init__("invalid_transition", f"a job {was} cannot change by {cause}" + (f" to {to}" if to else ""))
        self.state = state
        self.cause = cause
        self.to = to


class StaleAttempt(StoreError):
    """The fence has moved on: the attempt is no longer the holder and must kill its process group."""

    def __init__(self, job_id: str, attempt: int, fence: int) -> None:
        super().__init__(f"attempt {attempt} of {job_id} with fence {fence} no longer holds the job")
        self.job_id = job_id
        self.attempt = attempt
        self.fence = fence


class IdempotencyMismatch(StoreError):
    """The same Idempotency-Key came with a different request."""


class IdempotencyInProgress(StoreError):
    """The first request with this Idempotency-Key has not answered yet."""


class UnverifiedArtifact(StoreError):
    """A run claims success without an output that its kind must have, verified by the manifest that was reported."""
