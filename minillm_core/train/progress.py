"""How far the whole job is, and how long it will still take.

The share done is counted in units of work, planned before the first phase; the time left is what
this attempt needed per unit so far. Both are estimates and said to be.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from minillm_core.spec import Phase
from minillm_core.train.events import EventLog

_LEAST_SHARE_FOR_ESTIMATE = 0.01


@dataclass
class Progress:
    """``units`` names each part of the job and its work, in the order of the parts."""

    units: dict[str, float]
    events: EventLog
    _started: float = field(default_factory=time.monotonic)
    _first: float | None = None
    _phase: Phase = Phase.PREPARING

    def enter(self, phase: Phase, message: str = "") -> None:
        self._phase = phase
        self.events.phase(phase, message)

    @property
    def phase(self) -> Phase:
        return self._phase

    def report(
        self,
        part: str,
        share: float,
        *,
        step: int,
        total_steps: int,
        tokens_per_second: float | None = None,
        force: bool = False,
    ) -> None:
        """``share`` of ``part`` is done, and all parts before it."""
        total = sum(self.units.values()) or 1.0
        names = list(self.units)
        before = sum(self.units[name] for name in names[: names.index(part)])
        fraction = min(1.0, (before + min(1.0, share) * self.units[part]) / total)
        if self._first is None:
            self._first = fraction
        gained = fraction - self._first
        elapsed = time.monotonic() - self._started
        left = (1.0 - fraction) / gained * elapsed if gained > _LEAST_SHARE_FOR_ESTIMATE else None
        self.events.progress(
            self._phase,
            step=step,
            total_steps=total_steps,
            fraction=fraction,
            tokens_per_second=tokens_per_second,
            seconds_left=left,
            force=force,
        )
