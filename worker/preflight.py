"""Whether a slot is fit for a job: a dead one may still hold memory, and a full disk loses work."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from worker.devices import Gpu, among, probe_gpus
from worker.process.identity import ProcessIdentity

LEAST_FREE_SHARE = 0.5
"""An accelerator with less of its memory free is in use by something else."""
_PROBE_SECONDS = 10.0
_MISSING_SECONDS = 300.0
"""How long a slot that lacked something for one job takes no other: the machine's disks may not be mounted."""


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a stale file handle
        return False


class Preflight:
    """What is asked before each claim of one slot. Not thread-safe."""

    def __init__(
        self,
        *,
        runs_dir: Path,
        min_free_bytes: int,
        visible: Sequence[str] | None = None,
        probe: Callable[[], list[Gpu]] = probe_gpus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`visible` names the slot's accelerators; None means all of the machine's."""
        self._runs_dir = runs_dir
        self._min_free_bytes = min_free_bytes
        self._visible = visible
        self._probe = probe
        self._probed_at = -_PROBE_SECONDS
        self._gpus: list[Gpu] = []
        self._leftovers: list[ProcessIdentity] = []
        self._clock = clock
        self._missing: Path | None = None
        self._missing_until = 0.0

    def left_by(self, survivors: Sequence[ProcessIdentity]) -> None:
        """Note what an attempt left alive, and forget what the probe said before it."""
        self._leftovers = list(survivors)
        self._probed_at = -_PROBE_SECONDS

    def lacks(self, missing: Path | None) -> None:
        """Note what an attempt did not find on this machine although the service has it; None where it had all."""
        self._missing = missing
        self._missing_until = self._clock() + _MISSING_SECONDS

    def problem(self) -> str | None:
        """Why no job may be started here now; None where the slot is free."""
        self._leftovers = [process for process in self._leftovers if process.find() is not None]
        if self._leftovers:
            numbers = ", ".join(str(process.pid) for process in self._leftovers)
            return f"processes of an ended attempt cannot be killed: {numbers}"
        if self._missing is not None and (_is_there(self._missing) or self._clock() > self._missing_until):
            self._missing = None
        if self._missing is not None:
            return f"{self._missing} is not on this machine, although the service has it: is its disk mounted?"
        for gpu in self._probed():
            if gpu.free_bytes < LEAST_FREE_SHARE * gpu.total_bytes:
                free = f"{gpu.free_bytes >> 20} of {gpu.total_bytes >> 20} MiB"
                return f"accelerator {gpu.index} is in use by something else: {free} are free"
        try:
            free_bytes = shutil.disk_usage(self._runs_dir).free
        except OSError as error:
            return f"the folder of runs cannot be asked for its space: {error.strerror}"
        if free_bytes < self._min_free_bytes:
            return f"the disk is almost full: {free_bytes >> 20} MiB are free, {self._min_free_bytes >> 20} are needed"
        return None

    def _probed(self) -> list[Gpu]:
        """The slot's accelerators, as of the last seconds."""
        if time.monotonic() - self._probed_at >= _PROBE_SECONDS:
            self._gpus = [] if self._visible == () else among(self._probe(), self._visible)
            self._probed_at = time.monotonic()
        return self._gpus
