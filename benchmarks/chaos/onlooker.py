"""Somebody who looks on with Celery's own means while faults strike: `inspect ping` and `inspect active`."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass

from celery import Celery

from store.broker import BROKER_ERRORS, make_celery
from store.settings import Settings

EVERY_SECONDS = 5.0
ANSWER_SECONDS = 2.0


@dataclass
class Seen:
    """What was asked of the workers, and what came back."""

    asked: int = 0
    broker_away: int = 0
    pongs: int = 0
    """Answers of workers to pings."""
    silent: int = 0
    """Times that no worker answered, though the broker did: all were down, asleep or busy with their end."""
    active: int = 0
    """Tasks that were shown as active."""
    named: int = 0
    """Of them, how many with their job."""


class Onlooker:
    """A thread that asks while used as a context manager."""

    def __init__(self, broker_url: str) -> None:
        self.seen = Seen()
        self._celery: Celery = make_celery(Settings(broker_url=broker_url))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onlooker", daemon=True)

    def __enter__(self) -> Onlooker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._celery.close()

    def told(self) -> dict[str, int]:
        return asdict(self.seen)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            self.seen.asked += 1
            try:
                inspect = self._celery.control.inspect(timeout=ANSWER_SECONDS)
                pongs = inspect.ping() or {}
                tasks = [task for tasks in (inspect.active() or {}).values() for task in tasks]
            except BROKER_ERRORS:
                self.seen.broker_away += 1
                continue
            self.seen.pongs += len(pongs)
            self.seen.silent += not pongs
            self.seen.active += len(tasks)
            self.seen.named += sum("job" in task["kwargs"] for task in tasks)
