"""Twenty workers forked from one process, with a broker that forgets what is not acknowledged within three seconds.

``python twenty_workers.py``: each child is a whole worker with the tests' trainer, as ``python -m worker`` is; only the
imports are shared, so that twenty fit on two cores. Ends with the first signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from store.program import begin
from tests.fixtures.fake_launcher import FakeLauncher
from worker.app import make_app
from worker.process.guardian import die_with_parent

WORKERS = 20
VISIBILITY_SECONDS = 3


def work(number: int) -> None:
    """A worker with the shortest visibility timeout that a careless user might set."""
    die_with_parent(signal.SIGKILL)
    app = make_app(begin("worker"), lambda _: FakeLauncher())
    app.conf.broker_transport_options |= {
        "visibility_timeout": VISIBILITY_SECONDS,
        "unacked_restore_limit": 1000,
    }
    app.worker_main(["worker", "--without-gossip", "--without-mingle", f"--hostname=worker-{number}@%h"])


def main() -> int:
    children: list[int] = []
    for number in range(WORKERS):
        pid = os.fork()
        if pid == 0:
            try:
                work(number)
            finally:
                os._exit(1)
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
