"""Checkpoints found, shown and changed."""

from __future__ import annotations

from sqlalchemy.orm import Session

from api.checkpoints.schemas import CheckpointOut, CheckpointPatch
from api.http.problems import Conflict, NotFound
from api.jobs.service import live_job
from store.db.tables import Checkpoint
from store.jobs.checkpoints import CheckpointRepository
from store.settings import Settings


def checkpoint_out(row: Checkpoint) -> CheckpointOut:
    return CheckpointOut(
        id=row.id,
        object="job.checkpoint",
        attempt=row.attempt,
        phase=row.phase,
        step=row.step,
        bytes=row.bytes,
        manifest_sha256=row.manifest_sha256,
        best=row.best,
        resumable=row.resumable,
        pinned=row.pinned,
        expires_at=row.expires_at,
        metrics=row.metrics,
        created_at=row.created_at,
    )


def checkpoint_of(session: Session, owner_id: str, job_id: str, checkpoint_id: str) -> Checkpoint:
    """The checkpoint of this job of the caller. Raises NotFound (of api or store), also for another job's."""
    job = live_job(session, owner_id, job_id)
    row = CheckpointRepository(session).get(owner_id, checkpoint_id)
    if row.job_id != job.id:
        raise NotFound(f"There is no checkpoint {checkpoint_id!r}.")
    return row


def change(session: Session, settings: Settings, row: Checkpoint, patch: CheckpointPatch) -> Checkpoint:
    """Set the fields that the patch has. Raises Conflict `checkpoint_gone` for a pin that comes too late."""
    checkpoints = CheckpointRepository(session)
    if "expires_at" in patch.model_fields_set:
        checkpoints.set_expires_at(row, patch.expires_at)
    if patch.pinned is not None:
        checkpoints.set_pinned(row, patch.pinned)
        if patch.pinned and _gone(settings, row):
            raise Conflict("The trainer has removed this checkpoint already.", code="checkpoint_gone")
    return row


def _gone(settings: Settings, row: Checkpoint) -> bool:
    """Whether the run folder is on this machine and the checkpoint is not in it any more."""
    run_dir = settings.run_dir(row.job_id, row.attempt)
    return run_dir.is_dir() and not (run_dir / row.path).is_dir()
