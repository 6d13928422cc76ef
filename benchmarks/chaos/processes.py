"""Trainers as the machine shows them: who lives, whether two of one job ever live together, and who is left."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.chaos.stack import TOKEN_VARIABLE
from worker.process.identity import ATTEMPT_VARIABLE

LOOK_SECONDS = 0.1
_YOUNG_SECONDS = 5.0
"""A process may still become another program for so long after its first sight (between fork and exec)."""


@dataclass(frozen=True)
class Trainer:
    """A living process of an attempt."""

    pid: int
    job: str
    attempt: int
    guardian: bool


class Watch:
    """A thread that looks at every process again and again, and remembers which attempts trained together."""

    def __init__(self, runs_dir: Path) -> None:
        self._pattern = re.compile(re.escape(str(runs_dir)) + r"/(job_\w+)/(\d+)")
        self._seen: dict[int, float] = {}
        self._known: dict[int, Trainer] = {}
        self._together: dict[str, set[int]] = defaultdict(set)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.looks = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    @property
    def together(self) -> dict[str, set[int]]:
        """Attempts of a job that were seen alive in one look: a job is in it only if there were two."""
        return dict(self._together)

    def living(self) -> list[Trainer]:
        """As of the last look."""
        return list(self._known.values())

    def look(self) -> None:
        now = time.monotonic()
        numbers = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        for pid in self._seen.keys() - numbers:
            del self._seen[pid]
        for pid in numbers:
            if now - self._seen.setdefault(pid, now) <= _YOUNG_SECONDS:
                trainer = self._trainer(pid)
                if trainer is not None:
                    self._known[pid] = trainer
        for pid in list(self._known):
            if pid not in numbers or not _alive(pid):
                del self._known[pid]
        by_job: dict[str, set[int]] = defaultdict(set)
        for trainer in self._known.values():
            if not trainer.guardian:
                by_job[trainer.job].add(trainer.attempt)
        for job, attempts in by_job.items():
            if len(attempts) > 1:
                self._together[job] |= attempts
        self.looks += 1

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self.look()

    def _trainer(self, pid: int) -> Trainer | None:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return None
        if "minillm_core" not in words:
            return None
        match = next((found for word in words if (found := self._pattern.search(word))), None)
        if match is None or not _alive(pid):
            return None
        guardian = any(word.endswith("guardian.py") for word in words)
        return Trainer(pid, match[1], int(match[2]), guardian)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def left_behind(token: str, attempt_ids: set[str], folder: Path, seconds: float = 10.0) -> list[str]:
    """Processes of the service or of an attempt that still live after so long: ``pid command``."""
    until = time.monotonic() + seconds
    while True:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                environment = process.environ()
                ours = environment.get(TOKEN_VARIABLE) == token or environment.get(ATTEMPT_VARIABLE) in attempt_ids
                words = process.cmdline()
                ours = ours or any(str(folder) in word for word in words)
                if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {' '.join(words)[:200]}")
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.5)
