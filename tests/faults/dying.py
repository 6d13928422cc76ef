"""A program of the service that kills itself at a chosen moment: ``python dying.py MOMENT PROGRAM``.

MOMENT is ``module:name:before`` or ``module:name:after``, a call of that function or method (``Class.method``).
PROGRAM is `api`, `sweeper` or `worker` (with the tests' trainer).
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def deadly(function: Callable[..., Any], when: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **keywords)
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapper


def arm(moment: str) -> None:
    module, name, when = moment.split(":")
    *path, last = name.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    setattr(owner, last, deadly(getattr(owner, last), when))


def main() -> int:
    arm(sys.argv[1])
    if sys.argv[2] == "worker":
        from tests.fixtures import fake_launcher

        fake_launcher.app.worker_main(["worker", "--loglevel=INFO"])
    program = importlib.import_module({"api": "api.__main__", "sweeper": "worker.services.__main__"}[sys.argv[2]])
    return int(program.main())


if __name__ == "__main__":
    sys.exit(main())
