"""What a worker's main process does beside Celery's own work: it is known to the store, and it looks for jobs itself.

The main process never claims and never waits for a lock of a job's row: it tells the store that the worker lives,
looks whether there is a job while a slot is free, and gives the slot's process the task that claims. So a broker
that is dead, or forgets, costs the time between two looks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.utils import uuid
from celery.worker import consumer
from celery.worker.loops import asynloop
from celery.worker.state import maybe_shutdown, task_reserved
from sqlalchemy.exc import SQLAlchemyError

from store.broker import ATTEMPT_TASK, CPU_QUEUE, QUEUES
from store.db.database import Database
from store.db.errors import NotFound
from store.jobs.leases import waiting
from store.jobs.placement import Devices
from store.workers import WorkerRepository
from worker.devices import TooManySlots, among, chosen, cores, probe_gpus, share
from worker.occupancy import Occupancy
from worker.startup import UNAVAILABLE, end_on_sigterm, wait_for_schema
from worker.tasks import AttemptRequest

if TYPE_CHECKING:
    from worker.app import WorkerApp

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 2.0
COMPLAINT_SECONDS = 60.0
"""Time between two lines that say that there is no broker."""
_TASK_LOST_SECONDS = 10.0
"""A task that no slot has begun for so long is no longer waited for."""

_REPLACED_SECONDS = 10.0

_no_fork = threading.Lock()
"""Held while this process has connections to the database: SQLite's must not be in the memory that a fork copies."""
os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_no_fork.release)


class Claims(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Registers the worker, keeps its row, and looks for jobs, in a thread of its own.

    A step of the worker and not of its consumer: it goes on without a broker.
    """

    requires = ("celery.worker.components:Pool",)
    label = "Claims"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._worker = worker
        self._app: WorkerApp = worker.app
        self._settings = self._app.settings
        self._database = Database(self._settings.database_url)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="claims", daemon=True)
        self._offered: dict[str, float] = {}
        """Tasks that no slot has begun yet: id -> when they were given to the pool."""

    def create(self, worker: Any) -> None:
        """Before the pool is forked. Raises SystemExit where this machine or the database does not let it work."""
        end_on_sigterm()
        if worker.pool_cls.__module__ != "celery.concurrency.prefork" or not worker.use_eventloop or worker.autoscale:
            sys.exit("a slot is a place in a prefork pool of fixed size, and the broker Redis or Valkey")
        if not wait_for_schema(self._database):
            sys.exit(UNAVAILABLE)
        self._settings.runs.root.mkdir(parents=True, exist_ok=True)
        queues = [name for name in self._app.amqp.queues.consume_from if name in QUEUES]
        visible = chosen(self._settings.gpus if self._settings.gpus is not None else _seen_by_cuda())
        if queues == [CPU_QUEUE]:
            visible = ()
        try:
            self._app.devices = share(worker.concurrency, visible=visible, cores=cores())
        except TooManySlots as error:
            sys.exit(str(error))
        self._app.occupancy = Occupancy(worker.concurrency)
        self._app.accepted = self._accepted
        gpus = [] if visible == () else among(probe_gpus(), visible)
        self._app.placement = [
            Devices.of([{"memory": gpu.total_bytes} for gpu in among(gpus, devices.visible)], queues)
            for devices in self._app.devices
        ]
        with self._database.write() as session:
            row = WorkerRepository(session).register(
                host=socket.gethostname(),
                pid=os.getpid(),
                heartbeat_seconds=self._settings.heartbeat_seconds,
                slots=worker.concurrency,
                devices={
                    "cpus": cores(),
                    "gpus": [{"index": gpu.index, "memory": gpu.total_bytes} for gpu in gpus],
                    "queues": queues,
                    "slots": [
                        {
                            "cpus": devices.cores,
                            "gpus": [gpu.index for gpu in among(gpus, devices.visible)],
                            "dirty": None,
                        }
                        for devices in self._app.devices
                    ],
                },
            )
        self._app.worker_id = row.id
        self._database.dispose()
        signals.worker_shutting_down.connect(self._drain, weak=False)
        signals.worker_shutdown.connect(self._leave, weak=False)

    def start(self, worker: Any) -> None:
        self._thread.start()
        logger.info("worker %s is ready", self._app.worker_id)

    def close(self, worker: Any) -> None:
        """The worker begins to stop, also where remote control asked for it: the pool is waited for after this."""
        self._drain()

    def stop(self, worker: Any) -> None:
        """Nothing: the worker goes on to be known while its pool writes checkpoints."""

    terminate = stop

    def _drain(self, **_: Any) -> None:
        self._app.occupancy.drain()

    def _leave(self, **_: Any) -> None:
        self._stopped.set()
        self._app.occupancy.ring()
        self._thread.join(self._settings.heartbeat_seconds)
        with contextlib.suppress(SQLAlchemyError), _no_fork, self._database.write() as session:
            WorkerRepository(session).stop(self._app.worker_id)
        logger.info("worker %s has stopped", self._app.worker_id)

    # ------------------------------------------------------------------------------------- its own thread

    def _run(self) -> None:
        occupancy = self._app.occupancy
        beat_at = look_at = time.monotonic()
        known: list[str | None] = [None] * occupancy.slots
        while not self._stopped.is_set():
            rung = occupancy.wait(min(beat_at, look_at) - time.monotonic())
            if occupancy.draining:
                self._worker.hub.call_soon(_nothing)  # the event loop shall look at its flags now
            problems = [state.problem for state in occupancy.all()]
            if time.monotonic() >= beat_at or problems != known:
                self._beat(problems)
                known, beat_at = problems, time.monotonic() + self._settings.heartbeat_seconds
            if (rung or time.monotonic() >= look_at) and not occupancy.draining:
                self._look()
                # Workers that started together shall not ask together for ever.
                look_at = time.monotonic() + self._settings.poll_seconds * random.uniform(0.8, 1.2)
            elif occupancy.draining:
                look_at = beat_at

    def _beat(self, problems: list[str | None]) -> None:
        """Tell the store that this worker lives, and why which of its slots takes no job."""
        try:
            with _no_fork:
                with self._database.write() as session:
                    WorkerRepository(session).heartbeat(self._app.worker_id, problems=problems)
                self._database.dispose()
        except Exception as error:  # the next one may succeed: this thread is the only one that says so
            logger.warning("no heartbeat: %s", type(error).__name__)

    def _look(self) -> None:
        """Give the pool a task where a slot is free and a job waits, or where a slot was not fit for one."""
        states = self._app.occupancy.all()
        edge = time.monotonic() - _TASK_LOST_SECONDS
        offered = sum(since > edge for since in list(self._offered.values()))
        free = sum(not state.busy for state in states) - offered
        if free <= 0:
            return
        jobs = sum(state.problem is not None and not state.busy for state in states)
        if jobs < free:
            try:
                with _no_fork:
                    with self._database.read() as session:
                        jobs += waiting(
                            session,
                            self._app.worker_id,
                            devices=set(self._app.placement),
                            limit=free,
                            running_per_owner=self._settings.max_running_jobs,
                        )
                    self._database.dispose()
            except NotFound:
                logger.warning("the worker's row is gone")
            except SQLAlchemyError as error:
                logger.warning("looking for work failed: %s", type(error).__name__)
        for _ in range(min(jobs, free)):
            identifier = uuid()
            self._offered[identifier] = time.monotonic()
            self._worker.hub.call_soon(self._offer, identifier)

    # ------------------------------------------------------------------------------------ the event loop

    def _offer(self, identifier: str) -> None:
        """Put the task into the pool, as if a message had asked for it."""
        for lost in [key for key, since in self._offered.items() if since < time.monotonic() - _TASK_LOST_SECONDS]:
            self._offered.pop(lost, None)
        task = self._app.tasks[ATTEMPT_TASK]
        request = AttemptRequest(
            types.SimpleNamespace(delivery_info={}, properties={}, headers={}),
            on_ack=_nothing,
            on_reject=_nothing,
            app=self._app,
            hostname=self._worker.hostname,
            eventer=self._worker.consumer.event_dispatcher,
            task=task,
            headers={"id": identifier, "task": task.name, "root_id": identifier, "lang": "py", "retries": 0},
            body=([], {}, {}),
            decoded=True,
            utc=True,
        )
        task_reserved(request)
        request.send_event("task-received", name=task.name, args="[]", kwargs="{}", root_id=identifier, retries=0)
        self._worker.process_task(request)

    def _accepted(self, identifier: str) -> None:
        self._offered.pop(identifier, None)


class Consumer(consumer.Consumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer, which does not stop the pool's work where there is no broker.

    Celery's own waits for its broker without running its event loop, and forgets what it gave the pool with each
    connection that breaks. Here tasks do not come from the broker alone, and a doubled one does no harm.
    """

    restart_count = 0
    """As if it had been connected before: at the first time Celery ends a worker of whose pool a process has died, and
    here that may be minutes after the pool was made. It is replaced like any other."""

    _complain_at = 0.0

    def connect(self) -> Any:
        while True:
            try:
                return super().connect()
            except self.connection_errors as error:
                if time.monotonic() >= self._complain_at:
                    self._complain_at = time.monotonic() + COMPLAINT_SECONDS
                    self.on_connection_error_before_connected(error)
                self._run_loop(RECONNECT_SECONDS)

    def ensure_connected(self, conn: Any) -> Any:
        """One try, and one more at once; who fails begins again with :meth:`connect`."""
        conn.ensure_connection(max_retries=1, interval_start=0, interval_step=0, reraise_as_library_errors=False)
        self.first_connection_attempt = False
        return conn

    def on_close(self) -> None:
        """A connection has broken: what the pool has been given stays with it."""

    @staticmethod
    def loop(consumer: Consumer, *options: Any) -> None:
        """Celery's event loop, once every process of the pool can be watched."""
        with consumer._pool_watched():
            pass
        asynloop(consumer, *options)

    def _run_loop(self, seconds: float) -> None:
        """Serve the pool and the timers for so long."""
        hub = self.hub
        with self._pool_watched():
            hub.call_repeatedly(0.5, _nothing)  # so that a wait in the loop ends
            until = time.monotonic() + seconds
            loop = hub.create_loop()
            while time.monotonic() < until:
                maybe_shutdown()
                try:
                    next(loop)
                except (StopIteration, *self.connection_errors):
                    loop = hub.create_loop()

    @contextlib.contextmanager
    def _pool_watched(self) -> Iterator[None]:
        """Have the event loop watch the pool's processes; the timers of the block end with it.

        A process that has just died, and is neither watched any more nor replaced yet, cannot be watched.
        """
        timer = self.hub.timer
        known = {scheduled.entry for scheduled in timer.queue}
        until = time.monotonic() + _REPLACED_SECONDS
        try:
            while True:
                self.pool.maintain_pool()
                try:
                    self.controller.register_with_event_loop(self.hub)
                    break
                except ValueError:
                    if time.monotonic() > until:
                        raise
                time.sleep(0.05)
            yield
        finally:
            for entry in {scheduled.entry for scheduled in timer.queue} - known:
                timer.cancel(entry)


def _nothing(*_: object) -> None:
    pass


def _seen_by_cuda() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")
