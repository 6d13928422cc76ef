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
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from minillm_core.rank_failures import forget_failures, left_failure
from minillm_core.spec import EVENTS_FILE, ExitCode, FailureEvent, parse_event
from minillm_core.train.events import EventLog
from minillm_core.train.stop import LIFELINE_VARIABLE

_KILL_GRACE_SECONDS = 20.0
_POLL_SECONDS = 0.1
_LOOPBACK = "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def launch_ranks(run_dir: Path, ranks: int, program: Sequence[str] = ("-m", "minillm_core")) -> int:
    """Start ``ranks`` processes of ``program``, forward SIGTERM and SIGINT, and wait for all.

    Returns 0 when all ended well, else the code of the rank that failed first. When one rank
    fails, the others wait for it in a collective: they get SIGTERM and, after a grace, SIGKILL.
    A failure that the main rank could not report is added to the events, unless a signal ended a
    rank: what sent it is the supervisor's to find out.
    """
    forget_failures(run_dir)
    events = run_dir / EVENTS_FILE
    said_before = events.stat().st_size if events.exists() else 0
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
            [sys.executable, *program, str(run_dir)],
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
        if first_failure is None and (first_failure := _worst(codes)) is not None:
            deadline = time.monotonic() + _KILL_GRACE_SECONDS
            forward(signal.SIGTERM, None)
        if first_failure is not None and time.monotonic() > deadline:
            forward(signal.SIGKILL, None)
        time.sleep(_POLL_SECONDS)
    codes = [process.returncode for process in processes]
    if first_failure is None:
        first_failure = _worst(codes)
    if first_failure is not None:
        if first_failure >= 0:
            _report_failure(run_dir, said_before)
        # A rank ended by a signal: report it as a shell would, so that the supervisor can tell.
        return first_failure if first_failure >= 0 else 128 - first_failure
    return int(ExitCode.STOPPED) if ExitCode.STOPPED in codes else int(ExitCode.DONE)


def _worst(codes: Sequence[int]) -> int | None:
    """The code that tells most of those that ended badly at one look: a signal, then whatever comes first."""
    failed = [code for code in codes if code not in (ExitCode.DONE, ExitCode.STOPPED)]
    return next((code for code in failed if code < 0), failed[0] if failed else None)


def _report_failure(run_dir: Path, said_before: int) -> None:
    """Add the failure that some rank left, unless there is one in the events after ``said_before`` bytes."""
    failure = left_failure(run_dir)
    if failure is None:
        return
    events = run_dir / EVENTS_FILE
    if events.exists():
        with events.open("rb") as file:
            file.seek(said_before)
            said = file.read().splitlines(keepends=True)
        # A last line without its end was cut short with the main rank.
        if any(isinstance(parse_event(line), FailureEvent) for line in said if line.endswith(b"\n")):
            return
    log = EventLog(run_dir)
    log.failure(failure)
    log.close()
