"""Twenty workers forked from one process, with a broker that forgets what is not acknowledged within three seconds.

``python twenty_workers.py``: each child is a whole worker with the tests' trainer and a Celery process of its own, as
``python -m worker`` is; only the imports are shared, so that twenty fit on two cores. Ends with the first signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from multiprocessing import Process

from store.settings import get_settings
from tests.worker.fake_launcher import FakeLauncher
from worker import __main__ as worker_main
from worker import hints
from worker.doorbell import Doorbell
from worker.process.guardian import die_with_parent

WORKERS = 20
VISIBILITY_SECONDS = 3


def listen(doorbell: str) -> None:
    """What ``python -m worker.hints`` does, with the shortest visibility timeout that a careless user might set."""
    die_with_parent(signal.SIGKILL)
    app = hints.make_hints(get_settings(), doorbell)
    app.conf.broker_transport_options |= {
        "visibility_timeout": VISIBILITY_SECONDS,
        "unacked_restore_limit": 1000,
    }
    name = f"--hostname=minillm-{os.getppid()}@%h"
    app.worker_main(["worker", "--pool=prefork", "--concurrency=1", "--without-gossip", "--without-mingle", name])


class ForkedHints:
    """`worker.__main__.Hints`, forked instead of started."""

    def __init__(self, doorbell: Doorbell) -> None:
        self._process = Process(target=listen, args=(str(doorbell.path),))

    def start(self) -> None:
        self._process.start()

    def keep_alive(self) -> None:
        pass

    def stop(self) -> None:
        self._process.terminate()
        self._process.join(5)
        self._process.kill()


def main() -> int:
    worker_main.Hints = ForkedHints  # type: ignore[assignment, misc]
    children: list[int] = []
    for _ in range(WORKERS):
        pid = os.fork()
        if pid == 0:
            die_with_parent(signal.SIGKILL)
            os._exit(worker_main.run_worker(get_settings(), FakeLauncher()))
        children.append(pid)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while True:
            time.sleep(60)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGTERM)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main())
