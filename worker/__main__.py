"""``python -m worker``: ``celery -A worker.app worker``, with a name of its own for each process and our log level.

Options of Celery's worker may follow, such as ``-Q gpu --concurrency 2 -E``.
"""

from __future__ import annotations

import os
import sys

from worker import app


def main() -> None:
    # Several workers on a machine need names: what remote control asks, it asks by name.
    named = ["worker", f"--hostname=worker-{os.getpid()}@%h", f"--loglevel={app.app.settings.log_level}"]
    app.app.worker_main([*named, *sys.argv[1:]])


if __name__ == "__main__":
    main()
