"""When to stop: SIGTERM asks, the end of the supervisor orders.

SIGTERM only raises a flag. The loop agrees on it across ranks at the next step boundary, writes a
checkpoint and ends with :attr:`ExitCode.STOPPED`. When the supervisor is gone (end of file on the
lifeline pipe, or another parent than at the start), nobody would collect the result: the process
ends at once, because its successor may be about to start.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
import time
from types import FrameType

from minillm_core.spec import ExitCode
from minillm_core.train.distributed import Ranks

LIFELINE_VARIABLE = "MINILLM_LIFELINE_FD"
_PARENT_POLL_SECONDS = 1.0


class Stopped(Exception):
    """The run was asked to stop and has kept what it had."""


class StopFlag:
    """Set by SIGTERM; read at step boundaries by :meth:`agreed`."""

    def __init__(self) -> None:
        self._asked = False

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was asked to stop: the same answer on all of them."""
        return ranks.max(float(self._asked)) > 0


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


def watch_supervisor(lifeline_fd: int | None) -> None:
    """End this process within a second of its supervisor's end, from a daemon thread.

    ``lifeline_fd`` is the read end of the supervisor's pipe; None (a run by hand) watches nothing.
    A launcher in between may have closed the pipe: then the launcher itself is watched, which is
    killed together with the supervisor.
    """
    if lifeline_fd is None:
        return
    parent = os.getppid()
    has_pipe = _is_pipe(lifeline_fd)

    def watch() -> None:
        while os.getppid() == parent:
            if not has_pipe:
                time.sleep(_PARENT_POLL_SECONDS)
                continue
            readable, _, _ = select.select([lifeline_fd], [], [], _PARENT_POLL_SECONDS)
            if readable and os.read(lifeline_fd, 1) == b"":
                break
        os._exit(ExitCode.STOPPED)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
