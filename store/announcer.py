"""Tells workers of queued jobs without making anybody wait for the broker.

Requests hand a job over and go on; one thread sends. A broker that refuses or hangs is left alone for a while, and what
is announced meanwhile is dropped: workers poll, and sweeps announce again whatever is still queued.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time

import structlog
from celery import Celery

from store.broker import wake

WAITING = 1000
"""Announcements that wait to be sent at most."""
FIRST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 30.0
"""A broker that did not answer is asked again after the first, then twice as long each time up to the longest."""
DRAIN_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Announcer:
    """Sends wake-ups in a thread of its own, which starts with the first; used from any thread."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery
        self._jobs: queue.Queue[tuple[str, int] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._rest = 0.0
        self._resting_until = 0.0

    def announce(self, job_id: str, *, gpus: int = 1) -> None:
        """Have a queued job that asks for so many accelerators announced; call it after the commit. Returns at once
        and raises nothing."""
        if time.monotonic() < self._resting_until:
            return
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait((job_id, gpus))
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
                    self._thread.start()

    def close(self, seconds: float = DRAIN_SECONDS) -> None:
        """Send what waits, within `seconds` at most."""
        if self._thread is None:
            return
        until = time.monotonic() + seconds
        with contextlib.suppress(queue.Full):
            self._jobs.put(None, timeout=seconds)
            self._thread.join(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while (waiting := self._jobs.get()) is not None:
            job_id, gpus = waiting
            if time.monotonic() < self._resting_until:
                continue
            with structlog.contextvars.bound_contextvars(job_id=job_id):
                try:
                    sent = wake(self._celery, job_id, gpus=gpus)
                except Exception:  # a fault of ours, which the broker's health has nothing to do with
                    logger.exception("the job could not be announced")
                    continue
            if sent and self._rest:
                logger.info("the broker answers again")
            self._rest = 0.0 if sent else min(LONGEST_REST_SECONDS, max(FIRST_REST_SECONDS, 2 * self._rest))
            self._resting_until = 0.0 if sent else time.monotonic() + self._rest
