"""Workers: who is there, since when silent, and whether it takes jobs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from store.db.clock import database_now
from store.db.errors import NotFound
from store.db.ids import new_id
from store.db.printable import printable
from store.db.tables import Job, Worker
from store.jobs.vocabulary import HELD

_LATE_HEARTBEATS = 3
_LONGEST_SILENCE = dt.timedelta(hours=1)
"""Who has been silent for longer than any heartbeat may take need not be looked at."""


# Made once: it is asked for each new job.
_HEARD_OF = select(Worker).where(
    Worker.stopped_at.is_(None), Worker.heartbeat_at > bindparam("since", type_=Worker.heartbeat_at.type)
)


class WorkerRepository:
    """The workers table. Liveness shown here never decides over a job: only its lease does."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def register(
        self,
        *,
        host: str,
        pid: int,
        heartbeat_seconds: float,
        slots: int = 1,
        devices: dict[str, Any] | None = None,
    ) -> Worker:
        """A new row for a worker process that has just started."""
        now = database_now(self.session)
        row = Worker(
            id=new_id("wrk"),
            host=host,
            pid=pid,
            slots=slots,
            devices=devices or {},
            heartbeat_seconds=heartbeat_seconds,
            started_at=now,
            heartbeat_at=now,
            draining=False,
        )
        self.session.add(row)
        self.session.flush()
        return row

    def heartbeat(self, worker_id: str, *, problems: Sequence[str | None] = ()) -> Worker:
        """Note that it lives and why which of its slots takes no job; read ``draining`` from the row.

        ``problems`` has one entry for each slot, None for one that would take a job; ``slot_dirty`` is set where
        none would. Raises NotFound.
        """
        row = self.get(worker_id)
        row.heartbeat_at = database_now(self.session)
        told = [printable(problem) if problem is not None else None for problem in problems]
        dirty = list(dict.fromkeys(problem for problem in told if problem is not None))
        row.slot_dirty = "; ".join(dirty) if told and None not in told else None
        slots = row.devices.get("slots", [])
        if [slot["dirty"] for slot in slots] != told and len(slots) == len(told):
            marked = [{**slot, "dirty": problem} for slot, problem in zip(slots, told, strict=True)]
            row.devices = {**row.devices, "slots": marked}
        self.session.flush()
        return row

    def request_drain(self, worker_id: str) -> Worker:
        """It shall checkpoint and hand back its jobs and take no more. Raises NotFound."""
        return self._set_draining(worker_id, True)

    def undrain(self, worker_id: str) -> Worker:
        """It may take jobs again; what it hands back meanwhile stays handed back. Raises NotFound."""
        return self._set_draining(worker_id, False)

    def _set_draining(self, worker_id: str, draining: bool) -> Worker:
        row = self.get(worker_id)
        row.draining = draining
        self.session.flush()
        return row

    def stop(self, worker_id: str) -> None:
        """Note an orderly end. Again is no error."""
        row = self.session.get(Worker, worker_id)
        if row is not None and row.stopped_at is None:
            row.stopped_at = database_now(self.session)

    def get(self, worker_id: str) -> Worker:
        """Raises NotFound."""
        row = self.session.get(Worker, worker_id)
        if row is None:
            raise NotFound("worker", worker_id)
        return row

    def list(self, *, include_stopped: bool = False, limit: int = 100) -> Sequence[Worker]:
        """Workers, newest first."""
        statement = select(Worker).order_by(Worker.started_at.desc(), Worker.id.desc()).limit(limit)
        if not include_stopped:
            statement = statement.where(Worker.stopped_at.is_(None))
        return self.session.scalars(statement).all()

    def online(self) -> Sequence[Worker]:
        """Those that are there now, draining and dirty ones too."""
        now = database_now(self.session)
        rows = self.session.scalars(_HEARD_OF, {"since": now - _LONGEST_SILENCE})
        return [row for row in rows if self.is_online(row, now)]

    def idle(self) -> int:
        """How many slots would take a job now: those of workers that are online and do not drain, which are neither
        dirty nor hold one."""
        now = database_now(self.session)
        held = select(func.count(Job.id)).where(Job.lease_owner == Worker.id, Job.state.in_(HELD)).scalar_subquery()
        recent = Worker.heartbeat_at > now - _LONGEST_SILENCE
        rows = self.session.execute(
            select(Worker, held)
            .where(Worker.stopped_at.is_(None), Worker.draining.is_(False), Worker.slot_dirty.is_(None), recent)
            .where(held < Worker.slots)
        )
        return sum(max(0, _fit_slots(row) - busy) for row, busy in rows if self.is_online(row, now))

    def is_online(self, worker: Worker, now: dt.datetime) -> bool:
        """Whether it has neither stopped nor missed three of its own heartbeats."""
        silence = (now - worker.heartbeat_at).total_seconds()
        return worker.stopped_at is None and silence <= _LATE_HEARTBEATS * worker.heartbeat_seconds

    def forget_silent(self, older_than: dt.timedelta) -> None:
        """Delete workers that have stopped or been silent for so long."""
        edge = database_now(self.session) - older_than
        for row in self.session.scalars(select(Worker).where(Worker.heartbeat_at <= edge)).all():
            self.session.delete(row)


def _fit_slots(worker: Worker) -> int:
    return worker.slots - sum(slot.get("dirty") is not None for slot in worker.devices.get("slots", []))
