"""The claim loop: one slot, filled with whatever the database says comes next."""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from store.db.database import Database
from store.db.errors import NotFound
from store.jobs.leases import Claim, claim
from store.models import ModelRepository
from store.settings import Settings
from store.workers import WorkerRepository
from worker.attempt.supervisor import Supervisor
from worker.doorbell import Doorbell
from worker.launcher import TrainerLauncher
from worker.process.guardian import boot_time
from worker.slot import Slot

logger = logging.getLogger(__name__)


class ClaimLoop:
    """Takes one job after the other until it drains: the only way by which this worker gets work.

    It looks when the doorbell rings and, since a broker may be dead or a message lost, every `poll_seconds` anyway.
    """

    def __init__(
        self,
        *,
        database: Database,
        settings: Settings,
        launcher: TrainerLauncher,
        doorbell: Doorbell,
        slot: Slot,
        worker_id: str,
        drain: threading.Event,
        between: Callable[[], None],
    ) -> None:
        """`between` is called by the loop's thread before each look for work."""
        self._database = database
        self._settings = settings
        self._launcher = launcher
        self._doorbell = doorbell
        self._slot = slot
        self._worker_id = worker_id
        self._drain = drain
        self._between = between
        self._dirty: str | None = None

    def run(self) -> None:
        while not self._drain.is_set():
            # Workers that started together shall not ask together for ever.
            self._doorbell.wait(self._settings.poll_seconds * random.uniform(0.8, 1.2))
            self._between()
            while not self._drain.is_set() and self._take_one():
                pass
            self._doorbell.answer()

    def _take_one(self) -> bool:
        """Claim a job and run its attempt; whether there was one."""
        if self._slot_problem() is not None:
            return False
        claimed_at = boot_time()
        claimed = self._claim()
        if claimed is None:
            return False
        supervisor = Supervisor(
            database=self._database,
            settings=self._settings,
            launcher=self._launcher,
            claim=claimed,
            claimed_at=claimed_at,
            drain=self._drain,
            model_folder=lambda reference: self._model_folder(claimed.owner_id, reference),
        )
        try:
            supervisor.run()
        except Exception:
            # The trainer is dead; the lease expires and a sweep decides, which bounds the attempts.
            logger.exception("%s: the supervisor failed", claimed.job_id)
        self._slot.left_by(supervisor.survivors)
        self._slot.lacks(supervisor.missing)
        return True

    def _claim(self) -> Claim | None:
        try:
            with self._database.write() as session:
                return claim(
                    session,
                    self._worker_id,
                    socket.gethostname(),
                    os.getpid(),
                    self._settings.lease_seconds,
                    running_per_owner=self._settings.max_running_jobs,
                )
        except SQLAlchemyError as error:
            logger.warning("looking for work failed: %s", type(error).__name__)
        except Exception:
            # Whatever stands in a row, the next look for work is a new one.
            logger.exception("looking for work failed")
        return None

    def _slot_problem(self) -> str | None:
        """Why the slot is dirty; the worker's row says so too, once for each change."""
        problem = self._slot.problem()
        if problem != self._dirty:
            logger.warning("the slot is %s", f"refused: {problem}" if problem else "free again")
            try:
                with self._database.write() as session:
                    WorkerRepository(session).heartbeat(self._worker_id, slot_dirty=problem)
            except (SQLAlchemyError, NotFound) as error:
                logger.warning("the state of the slot was not recorded: %s", error)
                return problem or "the database is away"
            self._dirty = problem
        return problem

    @property
    def slot_dirty(self) -> str | None:
        """What the worker's row shall say of the slot."""
        return self._dirty

    def _model_folder(self, owner_id: str, reference: str) -> Path | None:
        with self._database.read() as session:
            try:
                model = ModelRepository(session).get(owner_id, reference)
            except NotFound:
                return None
        root = self._settings.data_dir if model.kind == "student" else self._settings.models_dir
        return root / model.path
