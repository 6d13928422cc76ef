"""One process per rank on this machine, and one exit code for all of them.

A run with more than one rank starts them here rather than under ``torchrun``, because a run that
is asked to stop must end with :attr:`ExitCode.STOPPED` and each rank must hold the supervisor's
lifeline; a rank started by ``torchrun`` (RANK is set) works as well and does not come here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from minillm_core.spec import ExitCode
from minillm_core.train.stop import LIFELINE_VARIABLE

_KILL_GRACE_SECONDS = 20.0
_POLL_SECONDS = 0.1
_LOOPBACK = "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def launch_ranks(run_dir: Path, ranks: int) -> int:
    """Start ``ranks`` processes of this program, forward SIGTERM and SIGINT, and wait for all.

    Returns 0 when all ended well, else the code of the rank that failed first. When one rank
    fails, the others wait for it in a collective: they get SIGTERM and, after a grace, SIGKILL.
    """
    lifeline = os.environ.get(LIFELINE_VARIABLE)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // ranks))
    shared = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": threads,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "minillm_core", str(run_dir)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            pass_fds=[int(lifeline)] if lifeline else [],
        )
        for rank in range(ranks)
    ]

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)

    first_failure: int | None = None
    deadline = 0.0
    while any(process.poll() is None for process in processes):
        codes = [code for process in processes if (code := process.poll()) is not None]
        failed = [code for code in codes if code not in (ExitCode.DONE, ExitCode.STOPPED)]
        if failed and first_failure is None:
            first_failure = failed[0]
            deadline = time.monotonic() + _KILL_GRACE_SECONDS
            forward(signal.SIGTERM, None)
        if first_failure is not None and time.monotonic() > deadline:
            forward(signal.SIGKILL, None)
        time.sleep(_POLL_SECONDS)
    codes = [process.returncode for process in processes]
    if first_failure is None:
        first_failure = next((code for code in codes if code not in (ExitCode.DONE, ExitCode.STOPPED)), None)
    if first_failure is not None:
        # A rank ended by a signal: report it as a shell would, so that the supervisor can tell.
        return first_failure if first_failure >= 0 else 128 - first_failure
    return int(ExitCode.STOPPED) if ExitCode.STOPPED in codes else int(ExitCode.DONE)
