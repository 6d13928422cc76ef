"""A place in the pool: one process with its own devices, filled with one attempt after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from store.db.database import Database
from store.db.errors import NotFound
from store.jobs.leases import Claim, claim
from store.jobs.placement import Devices
from store.models import ModelRepository
from store.settings import Settings
from worker.attempt.supervisor import Supervisor
from worker.launcher import TrainerLauncher
from worker.occupancy import Occupancy, SlotState
from worker.preflight import Preflight
from worker.process.guardian import boot_time

logger = logging.getLogger(__name__)


class Drain:
    """Whether the attempt that runs shall be handed back: the worker ends, or this process was sent SIGTERM."""

    def __init__(self, occupancy: Occupancy) -> None:
        self._occupancy = occupancy
        self.asked = False

    def is_set(self) -> bool:
        return self.asked or self._occupancy.draining


class Slot:
    """Used by the main thread of its process."""

    def __init__(
        self,
        *,
        index: int,
        worker_id: str,
        devices: Devices,
        settings: Settings,
        launcher: TrainerLauncher,
        preflight: Preflight,
        occupancy: Occupancy,
    ) -> None:
        self.index = index
        self._worker_id = worker_id
        self._devices = devices
        self._settings = settings
        self._launcher = launcher
        self._preflight = preflight
        self._occupancy = occupancy
        self._database = Database(settings.database_url)
        self._drain = Drain(occupancy)
        self._problem: str | None = None
        self._write(SlotState())

    @contextlib.contextmanager
    def handing_back_on_sigterm(self) -> Iterator[None]:
        """Within the block SIGTERM hands back the running attempt; whatever it meant before, it means at the end.

        The pool's own handler would leave the attempt at any point, with the lease still held.
        """

        def ask(*_: object) -> None:
            self._drain.asked = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            if self._drain.asked:
                os.kill(os.getpid(), signal.SIGTERM)

    def run_next(self) -> dict[str, Any] | None:
        """Claim the next job and run one attempt of it; how that ended, or None where there was nothing to do."""
        self._write(SlotState(busy=True))
        told, ended = self._problem, None
        try:
            ended = self._run_next()
            return ended
        finally:
            self._write(SlotState(problem=self._problem))
            if (ended is not None and "job" in ended) or self._problem != told:
                self._occupancy.ring()

    def _run_next(self) -> dict[str, Any] | None:
        if self._drain.is_set():
            return None
        self._check()
        if self._problem is not None:
            return {"refused": self._problem}
        claimed_at = boot_time()
        claimed = self._claim()
        if claimed is None:
            return None
        with structlog.contextvars.bound_contextvars(job_id=claimed.job_id, attempt=claimed.attempt):
            return self._run(claimed, claimed_at)

    def _run(self, claimed: Claim, claimed_at: float) -> dict[str, Any]:
        self._write(SlotState(busy=True, job_id=claimed.job_id, attempt=claimed.attempt))
        supervisor = Supervisor(
            database=self._database,
            settings=self._settings,
            launcher=self._launcher,
            claim=claimed,
            claimed_at=claimed_at,
            drain=self._drain,
            model_folder=lambda reference: self._model_folder(claimed.owner_id, reference),
        )
        state = None
        try:
            state = supervisor.run()
        except Exception:
            # The trainer is dead; the lease expires and a sweep decides, which bounds the attempts.
            logger.exception("%s: the supervisor failed", claimed.job_id)
        self._preflight.left_by(supervisor.survivors)
        self._preflight.lacks(supervisor.missing)
        self._check()
        return {"job": claimed.job_id, "attempt": claimed.attempt, "state": None if state is None else str(state)}

    def _claim(self) -> Claim | None:
        try:
            with self._database.write() as session:
                return claim(
                    session,
                    self._worker_id,
                    socket.gethostname(),
                    os.getpid(),
                    self._settings.lease_seconds,
                    devices=self._devices,
                    running_per_owner=self._settings.max_running_jobs,
                )
        except SQLAlchemyError as error:
            logger.warning("looking for work failed: %s", type(error).__name__)
        except Exception:
            # Whatever stands in a row, the next look for work is a new one.
            logger.exception("looking for work failed")
        return None

    def _check(self) -> None:
        problem = self._preflight.problem()
        if problem != self._problem:
            logger.warning("slot %d is %s", self.index, f"refused: {problem}" if problem else "free again")
            self._problem = problem

    def _write(self, state: SlotState) -> None:
        self._occupancy.write(self.index, dataclasses.replace(state, pid=os.getpid()))

    def _model_folder(self, owner_id: str, reference: str) -> Path | None:
        with self._database.read() as session:
            try:
                model = ModelRepository(session).get(owner_id, reference)
            except NotFound:
                return None
        root = self._settings.data_dir if model.kind == "student" else self._settings.models_dir
        return root / model.path
