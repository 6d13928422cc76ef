"""``python -m worker``: claims jobs and runs them, one at a time, until SIGTERM.

This process owns the slot, the lease and the trainer. A child runs Celery and only rings the doorbell. SIGTERM and
SIGINT drain: the trainer writes a checkpoint at its next step, the job goes back to the queue, and the worker exits
with 0 within the stop grace. SIGKILL is safe too: the trainer dies at once and a sweep requeues the job.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from store.db.database import Database
from store.program import begin
from store.settings import Settings
from store.workers import WorkerRepository
from worker.claiming import ClaimLoop
from worker.doorbell import DOORBELL_VARIABLE, Doorbell
from worker.embedded.child import start_child
from worker.launcher import TorchLauncher, TrainerLauncher
from worker.slot import Slot
from worker.startup import UNAVAILABLE, end_on_sigterm, wait_for_schema

logger = logging.getLogger(__name__)

HINTS_RESTART_SECONDS = 5.0
HINTS_STOP_SECONDS = 3.0


class Hints:
    """The Celery child: started again whenever it ends, since only latency depends on it."""

    def __init__(self, doorbell: Doorbell) -> None:
        self._environment = {**os.environ, DOORBELL_VARIABLE: str(doorbell.path)}
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    def start(self) -> None:
        """To be called by the main thread: the child lives no longer than the thread that started it."""
        self._started_at = time.monotonic()
        command = [sys.executable, "-m", "worker.hints"]
        self._process = start_child(command, environment=self._environment, output=None)

    def keep_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            if time.monotonic() - self._started_at < HINTS_RESTART_SECONDS:
                return
            logger.warning("the Celery process ended with %d and is started again", self._process.returncode)
            self.start()

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(HINTS_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _beat(database: Database, settings: Settings, worker_id: str, loop: ClaimLoop, stopped: threading.Event) -> None:
    """Tell the store every `heartbeat_seconds` that this worker lives."""
    while not stopped.wait(settings.heartbeat_seconds):
        try:
            with database.write() as session:
                WorkerRepository(session).heartbeat(worker_id, slot_dirty=loop.slot_dirty)
        except Exception as error:  # the next one may succeed: this thread is the only one that says so
            logger.warning("no heartbeat: %s", type(error).__name__)


def run_worker(settings: Settings, launcher: TrainerLauncher) -> int:
    """Run a worker in this process, whose main thread must call, until a signal; the exit code."""
    database = Database(settings.database_url)
    end_on_sigterm()
    if not wait_for_schema(database):
        return UNAVAILABLE
    settings.runs_dir.mkdir(parents=True, exist_ok=True)
    slot = Slot(runs_dir=settings.runs_dir, min_free_bytes=settings.min_free_bytes, gpus=settings.gpus)
    devices = {"cpus": os.cpu_count(), "gpus": [{"index": g.index, "memory": g.total_bytes} for g in slot.gpus()]}
    with database.write() as session:
        worker = WorkerRepository(session).register(
            host=socket.gethostname(),
            pid=os.getpid(),
            heartbeat_seconds=settings.heartbeat_seconds,
            devices=devices,
        )
    drain, stopped = threading.Event(), threading.Event()
    with Doorbell() as doorbell:

        def on_signal(number: int, _: object) -> None:
            drain.set()
            doorbell.interrupt()

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        hints = Hints(doorbell)
        hints.start()
        loop = ClaimLoop(
            database=database,
            settings=settings,
            launcher=launcher,
            doorbell=doorbell,
            slot=slot,
            worker_id=worker.id,
            drain=drain,
            between=hints.keep_alive,
        )
        beats = threading.Thread(
            target=_beat, args=(database, settings, worker.id, loop, stopped), name="heartbeat", daemon=True
        )
        beats.start()
        logger.info("worker %s is ready", worker.id)
        try:
            loop.run()
        finally:
            stopped.set()
            hints.stop()
    with contextlib.suppress(SQLAlchemyError), database.write() as session:
        WorkerRepository(session).stop(worker.id)
    database.dispose()
    logger.info("worker %s has stopped", worker.id)
    return 0


def main() -> int:
    settings = begin("worker")
    return run_worker(settings, TorchLauncher(gpus=settings.gpus, hub_offline=settings.hub_offline))


if __name__ == "__main__":
    sys.exit(main())
