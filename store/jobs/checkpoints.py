"""Checkpoints as their owners see them."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.db.errors import Conflict, NotFound
from store.db.paging import Order, Page, page
from store.db.tables import Checkpoint, Job
from store.jobs import retention
from store.jobs.transitions import add_event, lock


class CheckpointRepository:
    """Checkpoints; those being deleted are not found."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def get(self, owner_id: str, checkpoint_id: str) -> Checkpoint:
        """Raises NotFound, also for someone else's."""
        row = self.session.scalar(
            select(Checkpoint)
            .join(Job, Job.id == Checkpoint.job_id)
            .where(Checkpoint.id == checkpoint_id, Checkpoint.deleting.is_(False))
            .where(Job.owner_id == owner_id, Job.deleting.is_(False))
        )
        if row is None:
            raise NotFound("checkpoint", checkpoint_id)
        return row

    def list(
        self,
        job: Job,
        *,
        limit: int = 100,
        order: Order = "desc",
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Checkpoint]:
        """A page of the job's checkpoints. Raises NotFound for an unknown cursor."""
        statement = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.deleting.is_(False))
        return page(
            self.session,
            statement,
            Checkpoint.created_at,
            Checkpoint.id,
            prefix="ckpt",
            within=Checkpoint.job_id == job.id,
            limit=limit,
            order=order,
            after=after,
            before=before,
        )

    def set_pinned(self, checkpoint: Checkpoint, pinned: bool) -> Checkpoint:
        """A pinned checkpoint outlives retention, expiry and cancel; only its job's deletion takes it.

        Raises NotFound where it is gone by now, as do the others below.
        """
        self._lock(checkpoint).pinned = pinned
        self.session.flush()
        return checkpoint

    def set_expires_at(self, checkpoint: Checkpoint, expires_at: dt.datetime | None) -> Checkpoint:
        """After this time a sweep deletes it, unless it is pinned; None is never."""
        self._lock(checkpoint).expires_at = expires_at
        self.session.flush()
        return checkpoint

    def request_delete(self, checkpoint: Checkpoint) -> None:
        """Mark it for deletion.

        Raises Conflict(`pinned`), and Conflict(`in_use`) while a fork begins from it or an attempt may go on from it.
        """
        row = self._lock(checkpoint)
        if row.pinned:
            raise Conflict("pinned", "the checkpoint is pinned")
        if retention.needed_by_fork(self.session, row.id):
            raise Conflict("in_use", "an unfinished job begins from this checkpoint")
        if retention.needed_by_attempt(self.session, row.id):
            raise Conflict("in_use", "the job's attempt may go on from this checkpoint: it has none of its own yet")
        row.deleting = True
        self.session.flush()

    def purge(self, checkpoint_id: str) -> None:
        """Remove the row of one marked for deletion, once its folder is gone. Again is no error."""
        found = self.session.get(Checkpoint, checkpoint_id)
        if found is None:
            return
        try:
            job = lock(self.session, found.job_id)
        except NotFound:
            return
        # Looked at again under the lock: another sweeper may have been here meanwhile.
        row = self.session.get(Checkpoint, checkpoint_id, populate_existing=True)
        if row is None or not row.deleting:
            return
        self.session.delete(row)
        add_event(
            self.session,
            job,
            "checkpoint_removed",
            code="checkpoint_removed",
            data={"checkpoint": row.id, "path": row.path, "attempt": row.attempt},
        )

    def _lock(self, checkpoint: Checkpoint) -> Checkpoint:
        lock(self.session, checkpoint.job_id)
        row = self.session.get(Checkpoint, checkpoint.id, populate_existing=True)
        if row is None or row.deleting:
            raise NotFound("checkpoint", checkpoint.id)
        return row
