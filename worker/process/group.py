"""The trainer's processes as the supervisor sees them: started clean, stopped gently or surely, and proven gone.

The supervisor starts :mod:`worker.process.guardian` in a session of its own; the guardian starts the trainer. Between
the two runs a control pipe: each renewed lease is written to it as a new deadline, and its end of file (this process
is gone) or a deadline that passes makes the guardian kill everything. So the trainer dies with its supervisor or
its lease even where this module never gets to run again.

Everything started carries the attempt's id in its environment, which is how what escaped is found later, also by
another process (:func:`attempt_processes`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from worker.process.guardian import boot_time

ATTEMPT_VARIABLE = "MINILLM_ATTEMPT"
GUARDIAN = Path(__file__).with_name("guardian.py")
HARD_STOP_SECONDS = 5.0

_PASSED_ON = frozenset(
    {
        *(
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "LANG",
            "LANGUAGE",
            "TZ",
            "TMPDIR",
            "LD_LIBRARY_PATH",
            "CC",
            "CXX",
        ),
        *(
            "CUDA_VISIBLE_DEVICES",
            "CUDA_DEVICE_ORDER",
            "HIP_VISIBLE_DEVICES",
            "CUDA_HOME",
            "NVIDIA_VISIBLE_DEVICES",
            "NVIDIA_DRIVER_CAPABILITIES",
            "OMP_NUM_THREADS",
            "XDG_CACHE_HOME",
        ),
        *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "TORCH_HOME", "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    }
)
_PASSED_PREFIXES = ("LC_", "NCCL_", "GLOO_")
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"})


def clean_environment(source: Mapping[str, str]) -> dict[str, str]:
    """The part of `source` that a trainer may see: no database or broker URL, no key, no token.

    A list of what is let through, so that a secret added tomorrow under any name stays out. Proxies are let
    through unless they carry a password.
    """
    return {
        name: value
        for name, value in source.items()
        if name in _PASSED_ON or name.startswith(_PASSED_PREFIXES) or (name in _PROXIES and "@" not in value)
    }


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
            with (run_dir / "stdout.log").open("ab") as out, (run_dir / "stderr.log").open("ab") as err:
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


def rotate(log: Path, limit_bytes: int) -> bool:
    """Move a log that has outgrown `limit_bytes` to ``<name>.1`` and empty it; whether that was done.

    The trainer appends to the file through its own descriptor, so it is copied and cut rather than renamed; lines
    written in between may be lost, a price for never making the trainer wait for a reader. Raises OSError, with the
    log as it was, where there is no room for the copy.
    """
    before = log.with_name(log.name + ".1")
    try:
        if log.stat().st_size <= limit_bytes:
            return False
        with log.open("rb+") as current:
            current.seek(-limit_bytes, os.SEEK_END)
            with before.open("wb") as old:
                while block := current.read(1 << 20):
                    old.write(block)
            current.truncate(0)
    except FileNotFoundError:
        return False
    except OSError:
        before.unlink(missing_ok=True)
        raise
    return True
