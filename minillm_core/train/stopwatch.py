"""Where the time of a step goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

STEP_PARTS = ("student_forward", "loss", "backward", "optimizer")
"""Of a step: the student's layers; head, loss and their gradient; the layers' gradient; clipping and AdamW."""


class Stopwatch:
    """Seconds by part, on the host: an accelerator may lag behind what it was told to do."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEP_PARTS, 0.0)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time within to the part's."""
        begin = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - begin

    def take(self) -> dict[str, float]:
        """The seconds since the last call, which begin anew."""
        taken, self.seconds = self.seconds, dict.fromkeys(STEP_PARTS, 0.0)
        return taken
