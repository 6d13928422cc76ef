"""The one task of a worker: an attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Task
from celery.worker.request import Request

from store.broker import ATTEMPT_TASK

if TYPE_CHECKING:
    from worker.app import WorkerApp


class AttemptRequest(Request):  # type: ignore[misc]  # Celery has no types
    """A task on its way through the worker's main process, whether a message or the worker itself asked for it.

    A message only says that there may be work. Nothing else that it carries counts: no arguments, no time to wait
    for, no time limits, which would end the pool's process in the middle of an attempt.
    """

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        self.time_limits = (None, None)
        self._eta = self._expires = None

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)
        self.app.accepted(self.id)

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What `inspect active` shows: the job, as the slot's process says it."""
        app: WorkerApp = self.app
        known = [state for state in app.occupancy.all() if state.pid == self.worker_pid] if self.worker_pid else []
        job = {"job": known[0].job_id, "attempt": known[0].attempt} if known and known[0].job_id else {}
        return {**super().info(safe), "args": [], "kwargs": job}


class AttemptTask(Task):  # type: ignore[misc]  # Celery has no types
    """Claims the next job from its row and runs one attempt of it, to its end or until it is handed back."""

    name = ATTEMPT_TASK
    Request = f"{AttemptRequest.__module__}:{AttemptRequest.__qualname__}"
    ignore_result = True
    typing = False

    def run(self, *_: object, **__: object) -> dict[str, Any] | None:
        """How the attempt ended: ``{job, attempt, state}``; ``{refused}`` with the reason why this slot takes no
        job; None where there was nothing to do."""
        app: WorkerApp = self.app
        with app.slot.handing_back_on_sigterm():
            return app.slot.run_next()
