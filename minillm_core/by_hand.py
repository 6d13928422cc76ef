"""A run that a person started in a terminal: its events are told, and Ctrl-C saves before it ends."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from minillm_core.spec import Phase
from minillm_core.train.events import EventLog

PROGRESS_SECONDS = 5.0
_SHOWN = (("loss", "loss", ".4f"), ("reverse_kl", "reverse KL", ".4f"), ("dev_rouge_l", "ROUGE-L", ".2f"))


class ToldEvents(EventLog):
    """Appends events like any other log, and prints a line of those that a person waits for on standard error."""

    def __init__(self, run_dir: Path, *, interval: float = PROGRESS_SECONDS) -> None:
        super().__init__(run_dir)
        self._run_dir = run_dir
        self._interval = interval
        self._said = -math.inf
        self._entered: dict[Phase, float] = {}
        self._latest: dict[str, float] = {}

    def phase(self, phase: Phase, message: str = "") -> None:
        super().phase(phase, message)
        now = time.monotonic()
        # Rounds of seconds would be nothing but their own beginnings.
        if message and now - self._entered.get(phase, -math.inf) >= self._interval:
            self._entered[phase] = now
            _say(f"{phase}: {message}")

    def progress(
        self,
        phase: Phase,
        *,
        step: int,
        total_steps: int,
        fraction: float,
        tokens_per_second: float | None = None,
        seconds_left: float | None = None,
        force: bool = False,
    ) -> None:
        """Printed every ``interval`` seconds at most, with the newest of the measurements that tell how it goes."""
        super().progress(
            phase,
            step=step,
            total_steps=total_steps,
            fraction=fraction,
            tokens_per_second=tokens_per_second,
            seconds_left=seconds_left,
            force=force,
        )
        now = time.monotonic()
        if now - self._said < self._interval:
            return
        self._said = now
        parts = [f"{phase}: step {step}/{total_steps}", f"{fraction:.0%} of the job"]
        parts += [f"{title} {self._latest[name]:{form}}" for name, title, form in _SHOWN if name in self._latest]
        if tokens_per_second is not None:
            parts.append(f"{tokens_per_second:,.0f} tokens/s")
        if seconds_left is not None:
            parts.append(f"{seconds_left:,.0f} s left")
        _say("  ".join(parts))

    def metrics(self, phase: Phase, step: int, values: Mapping[str, float]) -> None:
        super().metrics(phase, step, values)
        self._latest |= values

    def message(self, level: str, code: str, message: str, **data: Any) -> None:
        super().message(level, code, message, **data)
        _say(message if level == "info" else f"{level}: {message}")

    def student(self, **fields: Any) -> None:
        super().student(**fields)
        report = fields["report"]
        scores = [(report.get(moment) or {}).get("rouge_l") for moment in ("before", "after")]
        shown = "" if None in scores else f", ROUGE-L {scores[0]:.2f} -> {scores[1]:.2f} on held-out rows"
        _say(report["verdict"])
        _say(f"the student is in {self._run_dir / fields['path']}{shown}")


def stop_on_interrupt() -> None:
    """Make SIGINT ask for what SIGTERM does: a checkpoint at the next step, then the end.

    A second one ends a run of one process at once. Ranks get each Ctrl-C twice, from the terminal and from their
    launcher, and take it as one.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if "RANK" not in os.environ:
            _say("stopping with a checkpoint at the next step (Ctrl-C again: at once)")
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGINT, ask)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
