"""Starts a program that dies with its parent: ``python -I -S child.py PARENT_PID COMMAND...``.

Asks the kernel for SIGKILL at the parent's end and becomes the command, which keeps that wish. A script of its own
rather than a hook between fork and exec: such a hook may deadlock in a parent with threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1


def start_child(
    command: list[str], *, environment: Mapping[str, str], output: IO[bytes] | int | None
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own; it dies with the calling thread, which must outlive it."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid()), *command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,
    )


def main(arguments: list[str]) -> None:
    parent, command = int(arguments[0]), arguments[1:]
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent has ended already")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
