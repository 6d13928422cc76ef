"""The accelerators and cores of this machine, and how the slots of a worker share them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass


class TooManySlots(ValueError):
    """There are more slots than accelerators to share among them."""


@dataclass(frozen=True)
class Gpu:
    """One accelerator as its driver reports it."""

    index: str
    uuid: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class SlotDevices:
    """What one slot may use."""

    cores: int
    visible: tuple[str, ...] | None
    """Accelerators as CUDA_VISIBLE_DEVICES names them; None leaves the trainer what the worker sees."""


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


def chosen(gpus: str | None) -> tuple[str, ...] | None:
    """The names in a list such as "0,1" or "GPU-uuid", as CUDA_VISIBLE_DEVICES takes it; None where none is given."""
    return None if gpus is None else tuple(name.strip() for name in gpus.split(",") if name.strip())


def among(gpus: Sequence[Gpu], visible: Sequence[str] | None) -> list[Gpu]:
    """Those that are visible; all of them for None."""
    return [gpu for gpu in gpus if visible is None or gpu.index in visible or gpu.uuid in visible]


def share(
    slots: int, *, visible: tuple[str, ...] | None, cores: int, probe: Callable[[], list[Gpu]] = probe_gpus
) -> list[SlotDevices]:
    """The devices of each slot: accelerators are dealt out whole and in order, cores evenly.

    `visible` are the worker's accelerators by name; None means all there are. Raises TooManySlots.
    """
    share_of_cores = max(1, cores // slots)
    if visible is None and slots > 1:
        # By uuid: CUDA counts in another order than the driver.
        visible = tuple(gpu.uuid for gpu in probe()) or None
    if not visible:
        return [SlotDevices(share_of_cores, visible)] * slots
    if slots > len(visible):
        raise TooManySlots(
            f"{slots} slots cannot share {len(visible)} accelerators: give --concurrency {len(visible)} at most, or "
            "-Q cpu for slots without accelerators"
        )
    least, more = divmod(len(visible), slots)
    ends = [least * (slot + 1) + min(slot + 1, more) for slot in range(slots)]
    return [SlotDevices(share_of_cores, visible[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
