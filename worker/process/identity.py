"""Which process is which: a number that cannot be mistaken, and the attempt that its environment carries.

Everything that an attempt starts carries the attempt's id in its environment, which is how what escaped its guardian
is found later, also by another process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

ATTEMPT_VARIABLE = "MINILLM_ATTEMPT"
HARD_STOP_SECONDS = 5.0


def _start_ticks(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The command name may hold anything, so fields are counted from its last bracket.
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            raise psutil.NoSuchProcess(pid) from None
        return round(psutil.Process(pid).create_time() * 100)


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: int
    """Clock ticks from boot to its start (field 22 of /proc/<pid>/stat)."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The identity of the process that has the number now. Raises psutil.NoSuchProcess."""
        return cls(pid, _start_ticks(pid))

    def find(self) -> psutil.Process | None:
        """The process, or None where it has ended or its number belongs to another now."""
        try:
            process = psutil.Process(self.pid)
            same = _start_ticks(self.pid) == self.started
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def kill(self) -> None:
        """SIGKILL, unless the number has passed to another process."""
        process = self.find()
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()


def attempt_processes(attempt_ids: Iterable[str] | None = None) -> dict[str, list[ProcessIdentity]]:
    """Living processes on this host by the attempt whose id their environment carries.

    Only processes of this user can be seen. `attempt_ids` limits the answer; None means every attempt.
    """
    wanted = None if attempt_ids is None else set(attempt_ids)
    found: dict[str, list[ProcessIdentity]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            attempt_id = process.environ().get(ATTEMPT_VARIABLE)
            if attempt_id and (wanted is None or attempt_id in wanted) and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(attempt_id, []).append(ProcessIdentity.of(process.pid))
    return found


def kill_attempt(attempt_id: str, seconds: float = HARD_STOP_SECONDS) -> list[ProcessIdentity]:
    """SIGKILL every process of an attempt until none is left; what could not be ended is returned."""
    until = time.monotonic() + seconds
    while True:
        alive = attempt_processes([attempt_id]).get(attempt_id, [])
        if not alive or time.monotonic() > until:
            return alive
        for identity in alive:
            identity.kill()
        time.sleep(0.02)
