"""Remote control: what Celery's commands may not do to a worker whose slots have devices of their own.

Imported for its effect: a command that is registered takes the place of Celery's own of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.control import control_command

_FIXED = "a slot has devices of its own: start the worker with another --concurrency"
_UNLIMITED = "how long a slot's attempt may take is the job's scheduling.max_runtime_seconds"

REFUSED = {
    "pool_grow": _FIXED,
    "pool_shrink": _FIXED,
    "pool_restart": _FIXED,
    "autoscale": _FIXED,
    "time_limit": _UNLIMITED,
}


def _refusal(reason: str) -> Callable[..., dict[str, str]]:
    def refuse(_state: Any, **_: Any) -> dict[str, str]:
        return {"error": reason}

    return refuse


for _name, _reason in REFUSED.items():
    control_command(name=_name)(_refusal(_reason))
