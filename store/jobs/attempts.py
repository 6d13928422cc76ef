"""Attempts by their ids, for whoever finds their processes."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from store.db.tables import Attempt, Job
from store.jobs.vocabulary import HELD, AttemptState


def ended_attempts(session: Session, attempt_ids: Collection[str]) -> set[str]:
    """Those of `attempt_ids` that are in this database and hold their job no longer.

    Ids that the database does not know are left out: they may be another service's.
    """
    ended = or_(Attempt.state != AttemptState.ACTIVE, Attempt.fence != Job.fence, Job.state.not_in(HELD))
    statement = select(Attempt.id).join(Job, Job.id == Attempt.job_id).where(Attempt.id.in_(attempt_ids), ended)
    return set(session.scalars(statement))
