"""The one process between a supervisor and its trainer: nothing below it outlives it or the lease.

Run as a plain script (``python -I -S guardian.py``) with the standard library alone, so that it starts in
milliseconds and is never stuck in native code while the trainer may be. It is the leader of a session of its own
and the subreaper of everything that the trainer starts, daemons with sessions of their own included, so all of
them are always its descendants and can be found without guessing.

It ends the whole tree with SIGKILL when

- the control pipe reaches its end: the supervisor is gone, however it went;
- the deadline passes that the supervisor last wrote on that pipe: a supervisor that is stopped, or cut off from
  the database, must not let the trainer run on while another worker holds the lease;
- the trainer has ended and left something behind.

SIGTERM is passed on to the trainer's first process alone, never to its helpers: a data loader that died of it would
take the last checkpoint with it. The exit status is the trainer's own; where it was killed, the guardian dies of the
same signal.

Arguments: CONTROL_FD DEADLINE COMMAND...; the deadline is in seconds of :func:`boot_time`. The trainer gets
``MINILLM_LIFELINE_FD``, the read end of a pipe that only the guardian holds open.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator

LIFELINE_FD = 9
"""Number under which the trainer finds the read end of its lifeline."""

KILL_SECONDS = 20.0
"""How long to wait for processes that SIGKILL cannot end, such as those asleep in a driver."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def boot_time() -> float:
    """Seconds since boot, time asleep included where the system can tell: one clock for all its processes."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def set_process_option(option: int, value: int) -> None:
    """prctl(2); does nothing where there is no such call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel for `signal_number` when the thread that made this process ends."""
    set_process_option(_PR_SET_PDEATHSIG, signal_number)


def _parents() -> Iterator[tuple[int, int, str]]:
    """(pid, parent pid, state letter) of every process, read from /proc/<pid>/stat."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", "rb") as stat:
                    # The command name may hold anything, so fields are counted from its last bracket.
                    fields = stat.read().rpartition(b")")[2].split()
                yield int(name), int(fields[1]), fields[0].decode()


def descendants(root: int) -> list[int]:
    """Every living process below `root`, zombies left out."""
    if not os.path.isdir("/proc/self"):
        return []
    children: dict[int, list[tuple[int, str]]] = {}
    for pid, parent, state in _parents():
        children.setdefault(parent, []).append((pid, state))
    found, todo = [], [root]
    while todo:
        for pid, state in children.get(todo.pop(), []):
            todo.append(pid)
            if state not in "ZX":
                found.append(pid)
    return found


def kill_descendants(root: int, seconds: float = KILL_SECONDS) -> list[int]:
    """SIGKILL everything below `root` until nothing is left; what could not be ended is returned."""
    until = time.monotonic() + seconds
    while True:
        reap()
        alive = descendants(root)
        if not alive or time.monotonic() > until:
            return alive
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def reap() -> dict[int, int]:
    """Collect every child that has ended: pid -> exit code, or minus the signal."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def _spawn(command: list[str], environment: dict[str, str]) -> int:
    guardian = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent(signal.SIGKILL)
        if os.getppid() == guardian:
            os.execvpe(command[0], command, environment)
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(127)


class Guardian:
    """A trainer started by :meth:`start` and watched by :meth:`watch`."""

    def __init__(self, control_fd: int, deadline: float) -> None:
        os.set_blocking(control_fd, False)
        self._control_fd = control_fd
        self._deadline = deadline
        self._partial = b""
        self._trainer = 0
        self._wake_read, wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def start(self, command: list[str]) -> None:
        lifeline_read, self._lifeline_write = os.pipe()
        os.dup2(lifeline_read, LIFELINE_FD, inheritable=True)
        os.close(lifeline_read)
        self._trainer = _spawn(command, {**os.environ, "MINILLM_LIFELINE_FD": str(LIFELINE_FD)})

    @property
    def seconds_left(self) -> float:
        """To the deadline; below 0 once it has passed."""
        return self._deadline - boot_time()

    def watch(self) -> int | None:
        """Wait for the trainer: its exit status, or None where the tree must be killed first."""
        while (left := self.seconds_left) > 0:
            # Looked at again at times, since a select does not count the time that the machine sleeps.
            readable, _, _ = select.select([self._control_fd, self._wake_read], [], [], min(left, 5.0))
            if self._control_fd in readable and not self._read_control():
                return None
            if self._wake_read in readable:
                received = os.read(self._wake_read, 4096)
                ended = reap()
                if self._trainer in ended:
                    return ended[self._trainer]
                if {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(received):
                    os.kill(self._trainer, signal.SIGTERM)
        return None

    def _read_control(self) -> bool:
        data = os.read(self._control_fd, 65536)
        if not data:
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        if lines:
            self._deadline = float(lines[-1])
        return True


def main(arguments: list[str]) -> None:
    """Guard the command until it has ended and nothing of it is left, then end as it did."""
    set_process_option(_PR_SET_CHILD_SUBREAPER, 1)
    # A core of a trainer is as large as its models and of no use to the user.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # Kept clear of the number that the trainer inherits.
    control_fd = fcntl.fcntl(int(arguments[0]), fcntl.F_DUPFD_CLOEXEC, 50)
    os.close(int(arguments[0]))
    guardian = Guardian(control_fd, float(arguments[1]))
    status = None
    if guardian.seconds_left > 0:  # else the supervisor has slept since its claim, and another may train by now
        guardian.start(arguments[2:])
        status = guardian.watch()
    kill_descendants(os.getpid())
    if status is None:
        status = -signal.SIGKILL
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
        time.sleep(1)
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main(sys.argv[1:])
