"""Processes that are asked to work in turn: one JSON object a line, over a worker's stdin and a pipe of its own.

What a worker or its libraries print goes to stderr. Only the standard library is used: a worker may
run in another environment.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_ANSWERS = "BENCHMARK_ANSWERS_FD"
_END_SECONDS = 30.0


class Caller:
    """The worker's end: :meth:`wait` for a request, :meth:`answer` it."""

    def __init__(self) -> None:
        self._out = os.fdopen(int(os.environ[_ANSWERS]), "w")

    def wait(self) -> dict[str, Any]:
        """The next request. Raises EOFError when there will be none."""
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        request: dict[str, Any] = json.loads(line)
        return request

    def answer(self, **values: Any) -> None:
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()


def cpu_seconds() -> float:
    """CPU time of this process so far, all threads: what a busy machine distorts least."""
    return time.process_time()


def peak_rss_mb() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Worker:
    """A process that answers requests; its first answer, before any request, is ``ready``."""

    def __init__(self, command: Sequence[str], *, timeout: float) -> None:
        self._timeout = timeout
        self._name = " ".join(command[-2:])
        answers, written = os.pipe()
        setting = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        # As the trainer sets for itself; on a busy machine it helps every side.
        setting["GOMP_SPINCOUNT"] = os.environ["GOMP_SPINCOUNT"]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            text=True,
            pass_fds=[written],
            env={**os.environ, **setting, _ANSWERS: str(written)},
        )
        os.close(written)
        self._answers = os.fdopen(answers)
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.ready = self._answer()

    def _read(self) -> None:
        with self._answers:
            for line in self._answers:
                self._lines.put(line)
        self._lines.put("")

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self._timeout)
        except queue.Empty:
            self.close()
            raise TimeoutError(f"{self._name} gave no answer within {self._timeout:.0f} s") from None
        if not line:
            raise RuntimeError(f"{self._name} ended with exit code {self._process.wait()}: see its output above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **request: Any) -> tuple[dict[str, Any], float]:
        """The answer to a request, and the seconds that it took."""
        assert self._process.stdin is not None
        begin = time.perf_counter()
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer, time.perf_counter() - begin

    def close(self) -> None:
        """End the process: by the end of its input, else by force."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
