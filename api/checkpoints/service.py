"""Checkpoints found and changed."""

from __future__ import annotations

from sqlalchemy.orm import Session

from api.checkpoints.schemas import CheckpointPatch
from store.db.errors import Conflict, NotFound
from store.db.tables import Checkpoint, Job
from store.jobs.checkpoints import CheckpointRepository
from store.settings import Settings


def of_job(session: Session, job: Job, checkpoint_id: str) -> Checkpoint:
    """Raises NotFound, also for another job's."""
    row = CheckpointRepository(session).get(job.owner_id, checkpoint_id)
    if row.job_id != job.id:
        raise NotFound("checkpoint", checkpoint_id)
    return row


def change(session: Session, settings: Settings, row: Checkpoint, patch: CheckpointPatch) -> Checkpoint:
    """Set the fields that the patch has. Raises Conflict `checkpoint_gone` for a pin that comes too late."""
    checkpoints = CheckpointRepository(session)
    if "expires_at" in patch.model_fields_set:
        checkpoints.set_expires_at(row, patch.expires_at)
    if patch.pinned is not None:
        checkpoints.set_pinned(row, patch.pinned)
        if patch.pinned and _gone(settings, row):
            raise Conflict("checkpoint_gone", "the trainer has removed this checkpoint already")
    return row


def _gone(settings: Settings, row: Checkpoint) -> bool:
    """Whether the run folder is on this machine and the checkpoint is not in it any more."""
    run = settings.runs.attempt(row.job_id, row.attempt)
    return run.path.is_dir() and not run.inside(row.path).is_dir()
