"""What an ended trainer means: exit status, why it was stopped and what it said last, as one outcome."""

from __future__ import annotations

import enum
import signal as signals
from dataclasses import dataclass
from pathlib import Path

from minillm_core.spec import ExitCode, Failure, FailureCategory
from store.jobs.endings import Outcome, Student


class StopReason(enum.IntEnum):
    """Why the supervisor stops a trainer; of several the greatest counts."""

    DRAIN = 1
    PAUSE = 2
    DISK_FULL = 3
    STALLED = 4
    TIME_LIMIT = 5
    CANCEL = 6


_ASKED_FOR = frozenset({StopReason.DRAIN, StopReason.PAUSE, StopReason.CANCEL})


@dataclass(frozen=True)
class Ending:
    """All that is known of a trainer that has ended."""

    status: int | None
    """Exit code, or minus the signal; None where no trainer was started."""
    reason: StopReason | None = None
    said: Failure | None = None
    """The last failure that the trainer itself reported."""
    student: Student | None = None
    """The verified student; None where none was announced or it did not verify."""
    damage: str | None = None
    """Why an announced student did not verify."""
    lease_overdue: bool = False
    out_of_memory: bool = False
    """Whether the kernel killed something for want of memory while the trainer ran."""
    disk_full: bool = False
    """Whether the disk was almost full when the trainer ended: it may have had no room to say why."""
    silent_seconds: float = 0.0
    log: bytes = b""


def judge(ending: Ending) -> Outcome:
    """The outcome to report. What the outcome means for the job is the store's to decide.

    A student that is committed and verified counts whatever came after, such as a cancel or a crash while the
    process was closing down.
    """
    code, signal = split_status(ending.status)
    if ending.student is not None and ending.said is None:
        return Outcome.succeeded(ending.student, exit_code=ExitCode.DONE if code is None else code)
    if ending.reason in _ASKED_FOR and (ending.said is None or ending.reason is StopReason.CANCEL):
        return Outcome.stopped(exit_code=code, signal=signal)
    return Outcome.failed(_failure(ending, code, signal), exit_code=code, signal=signal, log=ending.log)


def split_status(status: int | None) -> tuple[int | None, int | None]:
    """(exit code, signal) of a status; exit codes over 128 are how a launcher reports a rank's signal."""
    if status is None:
        return None, None
    if status < 0:
        return None, -status
    if status > 128 and status - 128 in {int(number) for number in signals.Signals}:
        return None, status - 128
    return status, None


def _failure(ending: Ending, code: int | None, signal: int | None) -> Failure:
    if ending.reason is StopReason.TIME_LIMIT:
        return _fault("time_limit", FailureCategory.USER, "The job reached its max_runtime_seconds")
    if ending.reason is StopReason.STALLED:
        silence = f"The trainer made no progress for {ending.silent_seconds:.0f} s"
        return _fault("stalled", FailureCategory.INFRASTRUCTURE, silence)
    if ending.reason is StopReason.DISK_FULL:
        return _fault("disk_full", FailureCategory.INFRASTRUCTURE, "The disk of the worker is almost full")
    if ending.said is not None:
        return ending.said
    if ending.disk_full and code != ExitCode.USER_ERROR:
        return _fault("disk_full", FailureCategory.INFRASTRUCTURE, "The trainer ended while the disk was almost full")
    if ending.lease_overdue:
        return _fault("worker_lost", FailureCategory.INFRASTRUCTURE, "The worker could not renew its lease in time")
    if signal is not None:
        return _by_signal(ending, signal)
    if code == ExitCode.STOPPED:
        return _fault("interrupted", FailureCategory.INFRASTRUCTURE, "The trainer was asked to stop from outside")
    if ending.damage is not None:
        message = f"The exported student is not what its manifest says: {ending.damage}"
        return _fault("student_damaged", FailureCategory.INFRASTRUCTURE, message)
    if code == ExitCode.DONE:
        return _fault("internal_error", FailureCategory.SYSTEM, "The trainer ended without exporting a student")
    category = FailureCategory.USER if code == ExitCode.USER_ERROR else FailureCategory.SYSTEM
    last = ending.log.decode(errors="replace").rstrip().rpartition("\n")[2][:500]
    message = f"The trainer ended with exit code {code}" + (f": {last}" if last else "")
    return _fault("invalid_value" if category is FailureCategory.USER else "internal_error", category, message)


def _by_signal(ending: Ending, signal: int) -> Failure:
    try:
        name = signals.Signals(signal).name
    except ValueError:
        name = f"signal {signal}"
    if signal == signals.SIGKILL and ending.out_of_memory:
        message = "The system ran out of memory and killed the trainer"
        return _fault("out_of_memory", FailureCategory.INFRASTRUCTURE, message)
    return _fault("trainer_killed", FailureCategory.INFRASTRUCTURE, f"The trainer was ended by {name}")


def _fault(code: str, category: FailureCategory, message: str) -> Failure:
    retryable = category is FailureCategory.INFRASTRUCTURE
    return Failure(code=code, category=category, message=message, retryable=retryable)


def out_of_memory_kills() -> int:
    """How many processes this system's kernel has killed for want of memory (0 where it does not say)."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
