"""The Celery side of a worker, ``python -m worker.hints``: one task, which rings the worker's doorbell.

It runs as a child of ``python -m worker``, so that no fault of the broker, of Celery or of its pool can touch a
running attempt. Prefork with one process: the main process stays responsive while the task waits.
"""

from __future__ import annotations

import os

from celery import Celery

from store.broker import RUN_TASK, make_celery
from store.program import begin
from store.settings import Settings
from worker.doorbell import DOORBELL_VARIABLE, ring


def make_hints(settings: Settings, doorbell: str) -> Celery:
    """The app with its one task, which rings at `doorbell`."""
    app = make_celery(settings)
    # Nothing is steered through the broker: whoever can write to it can wake a worker and no more.
    app.conf.worker_enable_remote_control = False

    def run(job_id: object) -> None:
        ring(doorbell, str(job_id))

    app.task(name=RUN_TASK, ignore_result=True)(run)
    return app


def main() -> None:
    settings = begin("worker")
    app = make_hints(settings, os.environ[DOORBELL_VARIABLE])
    app.worker_main(
        [
            "worker",
            "--pool=prefork",
            "--concurrency=1",
            "--without-gossip",
            "--without-mingle",
            f"--hostname=minillm-{os.getppid()}@%h",
            f"--loglevel={settings.log_level}",
        ]
    )


if __name__ == "__main__":
    main()
