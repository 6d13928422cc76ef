"""``python -m worker.services``: what must happen although nobody asks, over and over.

Recovers lost jobs, announces queued ones, removes what was deleted or has expired, and ends processes on this host
whose attempt is over, each in a loop of its own. Any number of these programs may run.
"""

from __future__ import annotations

import queue
import signal
import sys

from prometheus_client import start_http_server

from store.broker import make_celery
from store.db.database import Database
from store.program import begin
from worker.services.announce import Announce
from worker.services.loop import Loop
from worker.services.orphans import Orphans
from worker.services.recover import Recover
from worker.services.retention import Retention
from worker.startup import UNAVAILABLE, end_on_sigterm, wait_for_schema

STOP_SECONDS = 10.0
"""For the passes that run when the program is told to stop; what is cut short is done again."""


def main() -> int:
    settings = begin("services")
    database = Database(settings.database_url)
    end_on_sigterm()
    if not wait_for_schema(database):
        return UNAVAILABLE
    # A SimpleQueue, because a signal handler puts into it.
    stop: queue.SimpleQueue[int] = queue.SimpleQueue()
    signal.signal(signal.SIGTERM, lambda number, _: stop.put(number))
    signal.signal(signal.SIGINT, lambda number, _: stop.put(number))
    if settings.services_port is not None:
        start_http_server(settings.services_port, settings.host)
    services = (
        Recover(database, settings),
        Announce(database, settings, make_celery(settings)),
        Orphans(database),
        Retention(database, settings),
    )
    loops = [Loop(service, settings.sweep_seconds) for service in services]
    for loop in loops:
        loop.start()
    stop.get()
    for loop in loops:
        loop.stop()
    for loop in loops:
        loop.join(STOP_SECONDS)
    database.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main())
