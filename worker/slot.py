"""Whether this worker's place to train is free: a dead job may still hold memory, and a full disk loses work."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.process.identity import ProcessIdentity

LEAST_FREE_SHARE = 0.5
"""An accelerator with less of its memory free is in use by something else."""
_PROBE_SECONDS = 10.0
_MISSING_SECONDS = 300.0
"""How long a worker that lacked something for one job takes no other: its disks may not be mounted."""


@dataclass(frozen=True)
class Gpu:
    """One accelerator as its driver reports it."""

    index: str
    uuid: str
    free_bytes: int
    total_bytes: int


def probe_gpus() -> list[Gpu]:
    """The accelerators of this machine, asked of nvidia-smi: a process that must later fork never opens CUDA itself.

    [] where there is no driver, or none that answers within ten seconds.
    """
    query = "--query-gpu=index,uuid,memory.free,memory.total"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in answer.stdout.splitlines()]
    return [
        Gpu(row[0], row[1], int(row[2]) << 20, int(row[3]) << 20)
        for row in rows
        if len(row) == 4 and row[2].isdigit() and row[3].isdigit()
    ]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a stale file handle
        return False


class Slot:
    """The one place of this worker. Not thread-safe."""

    def __init__(
        self,
        *,
        runs_dir: Path,
        min_free_bytes: int,
        gpus: str | None = None,
        probe: Callable[[], list[Gpu]] = probe_gpus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`gpus` limits the accelerators that count, by index or uuid as CUDA_VISIBLE_DEVICES does."""
        self._runs_dir = runs_dir
        self._min_free_bytes = min_free_bytes
        self._names = None if gpus is None else {name.strip() for name in gpus.split(",") if name.strip()}
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

    def gpus(self) -> list[Gpu]:
        """The accelerators of this slot, as of the last seconds."""
        if time.monotonic() - self._probed_at >= _PROBE_SECONDS:
            self._gpus = [
                gpu
                for gpu in self._probe()
                if self._names is None or gpu.index in self._names or gpu.uuid in self._names
            ]
            self._probed_at = time.monotonic()
        return self._gpus

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
        for gpu in self.gpus():
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
