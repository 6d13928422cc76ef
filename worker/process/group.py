"""The trainer's processes as the supervisor sees them: started clean, stopped gently or surely, and proven gone.

The supervisor starts :mod:`worker.process.guardian` in a session of its own; the guardian starts the trainer. Between
the two runs a control pipe: each renewed lease is written to it as a new deadline, and its end of file (this process
is gone) or a deadline that passes makes the guardian kill everything. So the trainer dies with its supervisor or
its lease even where this module never gets to run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from store.bytes.runs import RunFolder
from worker.process.environment import clean_environment
from worker.process.guardian import boot_time
from worker.process.identity import ATTEMPT_VARIABLE, HARD_STOP_SECONDS, ProcessIdentity, kill_attempt

GUARDIAN = Path(__file__).with_name("guardian.py")


class ProcessGroup:
    """One attempt's guardian and all below it. Not thread-safe, but for :meth:`extend` and :meth:`cut`."""

    def __init__(self, process: subprocess.Popen[bytes], control_fd: int, attempt_id: str) -> None:
        self._process = process
        self._control_fd: int | None = control_fd
        self._control_lock = threading.Lock()
        self.attempt_id = attempt_id
        self.identity = ProcessIdentity.of(process.pid)

    @classmethod
    def start(
        cls,
        command: list[str],
        *,
        run_dir: Path,
        attempt_id: str,
        deadline: float,
        environment: Mapping[str, str] | None = None,
    ) -> ProcessGroup:
        """Start `command` under a guardian, output appended to stdout.log and stderr.log.

        `deadline` is in seconds of :func:`worker.process.guardian.boot_time`; the tree dies at it unless
        :meth:`extend` moves it. `environment` is put on top of :func:`clean_environment`.
        Raises OSError where the guardian cannot be started.
        """
        read_fd, write_fd = os.pipe()
        try:
            # A guardian that is stopped must not block the thread that renews the lease.
            os.set_blocking(write_fd, False)
            run = RunFolder(run_dir)
            with run.log("stdout").open("ab") as out, run.log("stderr").open("ab") as err:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(GUARDIAN), str(read_fd), repr(deadline), *command],
                    cwd=run_dir,
                    env={**clean_environment(os.environ), **(environment or {}), ATTEMPT_VARIABLE: attempt_id},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    pass_fds=[read_fd],
                    start_new_session=True,
                )
        except OSError:
            os.close(write_fd)
            raise
        finally:
            os.close(read_fd)
        fcntl.fcntl(write_fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        return cls(process, write_fd, attempt_id)

    def poll(self) -> int | None:
        """Exit code, minus the signal that ended it, or None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Like :meth:`poll`, after waiting up to `seconds` for the end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll()

    def extend(self, deadline: float) -> None:
        """Let the tree live until `deadline` (seconds of boot time). From any thread."""
        with self._control_lock:
            if self._control_fd is not None:
                # Full or broken: the guardian is stopped or gone, and the old deadline stands.
                with contextlib.suppress(OSError):
                    os.write(self._control_fd, f"{deadline!r}\n".encode())

    def request_stop(self) -> None:
        """SIGTERM to the trainer: it saves at the next step and exits with 75."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def cut(self) -> None:
        """Tell the guardian to kill everything now. From any thread; returns at once."""
        self.extend(boot_time() - 1.0)

    def kill(self) -> list[ProcessIdentity]:
        """End everything at once and return what could not be ended (an empty list, but for driver faults).

        Order of force: the guardian's own way first, since it knows all its descendants; then SIGKILL to its
        session; then to every process that carries the attempt's id.
        """
        self.cut()
        with self._control_lock:
            if self._control_fd is not None:
                os.close(self._control_fd)
                self._control_fd = None
        if self.wait(HARD_STOP_SECONDS / 2) is None:
            with contextlib.suppress(ProcessLookupError):
                # Not reaped yet, so the number is still ours.
                os.killpg(self._process.pid, signal.SIGKILL)
            self.wait(HARD_STOP_SECONDS / 2)
        return kill_attempt(self.attempt_id)
