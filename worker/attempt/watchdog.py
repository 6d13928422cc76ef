"""Whether a trainer still advances: a heartbeat says that the supervisor lives, not that the job does."""

from __future__ import annotations

import time
from collections.abc import Callable

from minillm_core.spec import (
    CheckpointEvent,
    MetricsEvent,
    Phase,
    PhaseEvent,
    ProgressEvent,
    StudentEvent,
    TrainerEvent,
)

_SLOW_PHASES = frozenset({Phase.VALIDATING, Phase.PREPARING, Phase.EXPORTING})
"""Loading, compiling and writing take long and have no steps to count."""


class Watchdog:
    """Measures the time since the last sign of work: a new phase, step, share done, measurement or checkpoint.

    A message, or the same progress once more, is no work: a loop that logs while it hangs is still hung.
    """

    def __init__(
        self, *, start_seconds: float, progress_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._start_seconds = start_seconds
        self._progress_seconds = progress_seconds
        self._clock = clock
        self._advanced_at = clock()
        self._stepped = False
        self._progress: tuple[str, int, float] | None = None
        self.phase: Phase | None = None

    @property
    def limit(self) -> float:
        """Seconds of silence that the present phase is allowed."""
        slow = not self._stepped or self.phase in _SLOW_PHASES
        return max(self._start_seconds, self._progress_seconds) if slow else self._progress_seconds

    @property
    def silent_seconds(self) -> float:
        return self._clock() - self._advanced_at

    @property
    def stalled(self) -> bool:
        return self.silent_seconds > self.limit

    def observe(self, event: TrainerEvent) -> None:
        if isinstance(event, ProgressEvent):
            progress = (str(event.phase), event.step, event.fraction)
            if progress == self._progress:
                return
            self._progress = progress
            self._stepped = True
        elif not isinstance(event, PhaseEvent | MetricsEvent | CheckpointEvent | StudentEvent):
            return
        if not isinstance(event, StudentEvent):
            self.phase = event.phase
        self.restart()

    def restart(self) -> None:
        """Begin to measure anew, for a silence that is not the trainer's."""
        self._advanced_at = self._clock()
