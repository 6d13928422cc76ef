"""How a trainer is started on this machine: the command, its environment and the devices it may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

import minillm_core.spec
from worker.devices import SlotDevices
from worker.process.group import ProcessGroup


class TrainerLauncher(Protocol):
    """Starts the processes of one attempt whose run folder is complete."""

    def launch(self, run_dir: Path, *, ranks: int, attempt_id: str, deadline: float) -> ProcessGroup:
        """Start a trainer for `ranks` ranks that lives until `deadline` (boot time) at most. Raises OSError."""
        ...


class TorchLauncher:
    """``python -m minillm_core RUN_DIR``, which starts one process per rank itself where there are several."""

    def __init__(self, devices: SlotDevices, *, hub_offline: bool = False) -> None:
        self._devices = devices
        self._hub_offline = hub_offline

    def launch(self, run_dir: Path, *, ranks: int, attempt_id: str, deadline: float) -> ProcessGroup:
        return ProcessGroup.start(
            [sys.executable, "-m", "minillm_core", str(run_dir)],
            run_dir=run_dir,
            attempt_id=attempt_id,
            deadline=deadline,
            environment=self.environment(ranks),
        )

    def environment(self, ranks: int) -> dict[str, str]:
        """What the trainer gets on top of the clean environment."""
        environment = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(_package_root())}
        if "OMP_NUM_THREADS" not in os.environ:
            # Each rank would otherwise take every core and they would fight for them.
            environment["OMP_NUM_THREADS"] = str(max(1, self._devices.cores // ranks))
        if self._devices.visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices.visible)
        if self._hub_offline:
            environment["HF_HUB_OFFLINE"] = environment["TRANSFORMERS_OFFLINE"] = "1"
        return environment


def _package_root() -> Path:
    """The folder that `minillm_core` is imported from: the run folder, in which the trainer starts, is another."""
    return Path(minillm_core.spec.__file__).resolve().parents[2]
