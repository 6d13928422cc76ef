"""What each slot does: a few bytes of memory that the worker's main process shares with its pool.

Made before the pool's processes are forked. A slot is written by its own process alone, and read by the main process:
for `inspect active`, for the worker's row, and to know which slots are free. Nothing depends on it but these.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
from dataclasses import asdict, dataclass

_HEAD = 8
"""Bytes before the slots: the first says whether the worker drains."""
_ROOM = 1024
_LENGTH = 2
_LONGEST_PROBLEM = 200
"""Characters, of at most four bytes each: there must be room for the rest of a state."""


@dataclass(frozen=True)
class SlotState:
    """What a slot does."""

    pid: int = 0
    """Its process; 0 before that has begun."""
    busy: bool = False
    """Whether it works on a task, with or without a job as yet."""
    job_id: str | None = None
    attempt: int | None = None
    problem: str | None = None
    """Why it takes no job although it has none."""


class Occupancy:
    """The states of all slots, and a bell by which a slot calls the main process's attention to its own."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._memory = mmap.mmap(-1, _HEAD + slots * _ROOM)
        self._bell, self._rope = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._rope, False)

    @property
    def draining(self) -> bool:
        """Whether every slot shall hand back what it has and take no more."""
        return self._memory[0] != 0

    def drain(self) -> None:
        """From now on :attr:`draining`, in all processes. May be called by a signal handler."""
        self._memory[0] = 1
        self.ring()

    def write(self, slot: int, state: SlotState) -> None:
        """To be called by the slot's own process alone."""
        problem = state.problem[:_LONGEST_PROBLEM] if state.problem is not None else None
        text = json.dumps({**asdict(state), "problem": problem}, ensure_ascii=False).encode(errors="replace")
        start = _HEAD + slot * _ROOM
        self._memory[start : start + _LENGTH] = bytes(_LENGTH)  # nothing, while it is written
        self._memory[start + _LENGTH : start + _LENGTH + len(text)] = text
        self._memory[start : start + _LENGTH] = len(text).to_bytes(_LENGTH, "little")

    def read(self, slot: int) -> SlotState:
        start = _HEAD + slot * _ROOM
        length = int.from_bytes(self._memory[start : start + _LENGTH], "little")
        with contextlib.suppress(ValueError, TypeError):  # half written
            return SlotState(**json.loads(self._memory[start + _LENGTH : start + _LENGTH + length]))
        return SlotState()

    def all(self) -> list[SlotState]:
        return [self.read(slot) for slot in range(self.slots)]

    def ring(self) -> None:
        """Let :meth:`wait` return."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._rope, b"!")

    def wait(self, seconds: float) -> bool:
        """Wait for a ring, at most for so long; whether there was one."""
        readable, _, _ = select.select([self._bell], [], [], max(0.0, seconds))
        if readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._bell, 4096)
        return bool(readable)
