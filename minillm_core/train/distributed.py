"""The ranks of one run: who am I, and the few collectives that the loop needs.

Every collective here is called by all ranks in the same order. Small host-side values travel as
float64 tensors or pickled objects between processes of the same run, never over a file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from minillm_core.errors import SystemFault
from minillm_core.train.memory import keep_freed_memory

COLLECTIVE_TIMEOUT = timedelta(minutes=60)
"""Longest wait for the slowest rank; a round of sampling lies between two collectives."""


class Ranks:
    """This process's place among the processes of the run.

    ``device`` is the accelerator of the local rank, or the CPU where there is none.
    """

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank = rank
        self.world = world
        self.device = device

    @classmethod
    def start(cls) -> Ranks:
        """Join the process group that RANK and WORLD_SIZE describe; a group of one without them.

        Raises SystemFault ``not_enough_gpus`` where the machine has fewer accelerators than ranks: the service gives
        a job to such workers alone as say that they have them, so one that does not is the infrastructure's fault.
        """
        rank = int(os.environ.get("RANK", "0"))
        world = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            if local_rank >= torch.cuda.device_count():
                raise SystemFault(
                    "not_enough_gpus",
                    f"the job asks for an accelerator for each rank; this worker has {torch.cuda.device_count()}",
                    param="/resources/gpus",
                    retryable=True,
                )
            torch.cuda.set_device(local_rank)
            device, backend = torch.device("cuda", local_rank), "nccl"
        else:
            device, backend = torch.device("cpu"), "gloo"
            keep_freed_memory()
            threads = os.environ.get("OMP_NUM_THREADS")
            torch.set_num_threads(int(threads) if threads else max(1, (os.cpu_count() or 1) // world))
        if not dist.is_initialized():
            if world == 1:
                # A group of one needs no address, so that two runs on one machine cannot collide.
                store = dist.HashStore()
                dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
            else:
                dist.init_process_group(backend, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)
        # DeepSpeed asks for it even when the group is there.
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
        return cls(rank, world, device)

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes events, manifests and the student."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks, in float64."""
        if self.world == 1:
            return [float(value) for value in values]
        return self.reduce(torch.tensor(list(values), dtype=torch.float64)).tolist()

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of a small tensor over ranks; same shape, on the tensor's own device."""
        if self.world == 1:
            return tensor
        on_device = tensor.to(self.device, copy=True)
        dist.all_reduce(on_device)
        return on_device.to(tensor.device)

    def max(self, value: float) -> float:
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor.item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The main rank's value."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def share(self, count: int) -> list[int]:
        """The numbers below ``count`` that are this rank's: every ``world``-th."""
        return list(range(self.rank, count, self.world))

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
