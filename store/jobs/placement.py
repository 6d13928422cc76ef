"""Which jobs a worker's devices can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, or_

from store.broker import CPU_QUEUE, GPU_QUEUE, QUEUES, queue_for
from store.db.tables import Job, Worker


@dataclass(frozen=True)
class Devices:
    """The accelerators that one slot of a worker gives to a job.

    Without any, the ranks of a job share the CPU: such a worker runs every job but those that say how much memory an
    accelerator must have, which are meant for accelerators alone.
    """

    memory: tuple[int, ...] = ()
    """Bytes of each accelerator, largest first; 0 where the driver does not say."""
    queues: tuple[str, ...] = QUEUES
    """The classes of jobs that the worker was told to take, by their queues."""

    @classmethod
    def of(cls, gpus: Sequence[Mapping[str, Any]], queues: Sequence[str] = QUEUES) -> Devices:
        """As the worker describes them: ``{"memory": bytes, ...}`` each."""
        return cls(tuple(sorted((_bytes(gpu.get("memory")) for gpu in gpus), reverse=True)), tuple(queues))

    @classmethod
    def of_worker(cls, worker: Worker) -> Devices:
        """What every slot of the worker has at least: its accelerators are dealt out whole among the slots."""
        described = worker.devices.get("gpus")
        queues = worker.devices.get("queues")
        every = cls.of(described if isinstance(described, list) else [], queues if isinstance(queues, list) else QUEUES)
        least = len(every.memory) // max(1, worker.slots)
        if every.memory and not least:
            return every  # more slots than accelerators: they cannot have been dealt out
        return cls(every.memory[len(every.memory) - least :], every.queues)

    def can_run(self, gpus: int, gpu_memory: int | None) -> bool:
        """Whether they are as many, and each as large, as a job needs (``Job.gpus`` and ``Job.gpu_memory``)."""
        if queue_for(gpus) not in self.queues:
            return False
        if not self.memory:
            return gpu_memory is None
        return gpus <= len(self.memory) and (gpu_memory is None or gpu_memory <= self.memory[max(gpus, 1) - 1])

    def suits(self) -> ColumnElement[bool]:
        """The same as a condition on jobs."""
        classes = {GPU_QUEUE: Job.gpus > 0, CPU_QUEUE: Job.gpus == 0}
        taken = or_(*(classes[queue] for queue in self.queues if queue in classes))
        if not self.memory:
            return and_(taken, Job.gpu_memory.is_(None))
        enough = [and_(Job.gpus == number, Job.gpu_memory <= self.memory[number - 1]) for number in self._numbers]
        least = and_(Job.gpus == 0, Job.gpu_memory <= self.memory[0])
        return and_(taken, or_(and_(Job.gpus <= len(self.memory), Job.gpu_memory.is_(None)), least, *enough))

    @property
    def _numbers(self) -> range:
        return range(1, len(self.memory) + 1)


def _bytes(value: object) -> int:
    return value if isinstance(value, int) else 0
