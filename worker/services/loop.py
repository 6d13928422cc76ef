"""A service: something done over and over, in a thread of its own, with metrics of its own."""

from __future__ import annotations

import logging
import threading
import time
from typing import ClassVar, Protocol

from prometheus_client import Counter, Gauge, Histogram
from sqlalchemy.exc import SQLAlchemyError

logger = logging.getLogger(__name__)

PASSES = Counter("minillm_service_passes_total", "Passes of a service by how they ended.", ["service", "ended"])
SECONDS = Histogram("minillm_service_pass_seconds", "Time of a pass of a service.", ["service"])
LAST = Gauge("minillm_service_last_pass_timestamp_seconds", "When a service last ended a pass well.", ["service"])


class Service(Protocol):
    """What is done over and over. A pass may be done twice or be cut short anywhere."""

    name: ClassVar[str]

    def run_once(self) -> object:
        """One pass."""
        ...


class Loop:
    """Runs a service every so many seconds until :meth:`stop`."""

    def __init__(self, service: Service, seconds: float) -> None:
        self._service = service
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=service.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin no further pass."""
        self._stopped.set()

    def join(self, seconds: float) -> None:
        """Wait for the pass that runs, at most for so long."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.run_once()
            self._stopped.wait(self._seconds)

    def run_once(self) -> bool:
        """One pass, measured; whether it ended well. Raises nothing: jobs depend on the next one."""
        name = self._service.name
        began = time.monotonic()
        ended = "failed"
        try:
            self._service.run_once()
            ended = "done"
            LAST.labels(name).set_to_current_time()
        except SQLAlchemyError as error:
            ended = "cut_short"
            logger.warning("%s was cut short: %s: %s", name, type(error).__name__, error)
        except Exception:  # whatever it is: jobs depend on the next pass
            logger.exception("%s failed", name)
        PASSES.labels(name, ended).inc()
        SECONDS.labels(name).observe(time.monotonic() - began)
        return ended == "done"
