"""The worker's Celery app: ``celery -A worker.app worker``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from billiard.process import current_process
from celery import Celery, signals

from store.broker import make_celery
from store.jobs.placement import Devices
from store.program import begin, hide_process
from store.settings import Settings
from worker import control as control
from worker.bootsteps import Claims
from worker.devices import SlotDevices
from worker.launcher import TorchLauncher, TrainerLauncher
from worker.occupancy import Occupancy
from worker.preflight import Preflight
from worker.slot import Slot
from worker.tasks import AttemptTask

MakeLauncher = Callable[[SlotDevices], TrainerLauncher]


class WorkerApp(Celery):  # type: ignore[misc]  # Celery has no types
    """A Celery app with what its worker's main process and its pool share.

    :class:`worker.bootsteps.Claims` fills in the worker's part before the pool is forked; :attr:`slot` is there in
    processes of the pool alone.
    """

    settings: Settings
    make_launcher: MakeLauncher
    worker_id: str
    devices: list[SlotDevices]
    placement: list[Devices]
    """What jobs each slot can run by its devices."""
    occupancy: Occupancy
    slot: Slot
    accepted: Callable[[str], None]
    """Called by the main process with the id of each task that a slot has begun."""

    def open_slot(self, **_: Any) -> None:
        """Make this process of the pool the slot of its number."""
        hide_process()
        index: int = current_process().index
        devices = self.devices[index]
        self.slot = Slot(
            index=index,
            worker_id=self.worker_id,
            devices=self.placement[index],
            settings=self.settings,
            launcher=self.make_launcher(devices),
            preflight=Preflight(
                runs_dir=self.settings.runs.root,
                min_free_bytes=self.settings.min_free_bytes,
                visible=devices.visible,
            ),
            occupancy=self.occupancy,
        )
        if os.getppid() == 1:  # the main process died before it was to be noticed
            os._exit(1)


def make_app(settings: Settings, make_launcher: MakeLauncher) -> WorkerApp:
    """The app of a worker whose slots start trainers by `make_launcher`."""
    app = make_celery(settings, WorkerApp)
    assert isinstance(app, WorkerApp)
    app.settings = settings
    app.make_launcher = make_launcher
    app.conf.update(
        worker_consumer="worker.bootsteps:Consumer",
        worker_pool_start_method="fork",  # the slots' states are memory that is shared by forking
        worker_lost_wait=2.0,
        worker_proc_alive_timeout=60.0,
    )
    app.register_task(AttemptTask())
    app.steps["worker"].add(Claims)
    signals.worker_process_init.connect(app.open_slot, weak=False)
    return app


def _torch(settings: Settings) -> MakeLauncher:
    return lambda devices: TorchLauncher(devices, hub_offline=settings.hub_offline)


def __getattr__(name: str) -> WorkerApp:
    """`app`, made when Celery's command line asks for it: importing this module changes nothing."""
    if name != "app":
        raise AttributeError(name)
    settings = begin("worker")
    globals()["app"] = app = make_app(settings, _torch(settings))
    return app
