"""Unexpected exceptions as the failures they are."""

from __future__ import annotations

import errno

import torch
import torch.distributed as dist

from minillm_core.errors import SystemFault
from minillm_core.rank_failures import RANK_LOST
from minillm_core.train.checkpoints import FULL_DISK, disk_fault, is_write_error

_LOST_RANK_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
_LOST_DISK = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO}
)
"""A disk or a network file system does not answer as it should: another time, or another machine, may do better."""
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")


def as_fault(error: Exception) -> SystemFault:
    """A full or lost disk, exhausted memory and a lost rank have codes of their own; the rest is ``internal_error``."""
    if (isinstance(error, OSError) and error.errno in FULL_DISK) or (
        is_write_error(error) and not isinstance(error, OSError)
    ):
        return disk_fault(error, "the run's files")
    if isinstance(error, OSError) and error.errno in _LOST_DISK:
        return SystemFault("io_error", f"a disk does not answer: {error}", retryable=True)
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in text.lower() for word in _MEMORY_WORDS):
        return SystemFault(
            "out_of_memory",
            "memory ran out: lower training.micro_batch_tokens or training.decode_batch_rows, turn on "
            f"training.activation_checkpointing, or raise resources.zero_stage ({text.split(chr(10), 1)[0]})",
            retryable=True,
        )
    if isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text.lower() for word in _LOST_RANK_WORDS)
    ):
        return SystemFault(RANK_LOST, f"another rank of the run is gone: {text}", retryable=True)
    return SystemFault("internal_error", f"{type(error).__name__}: {text or 'no message'}", retryable=False)
