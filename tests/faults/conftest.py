"""What the tests of faults share: the worker room's service and programs, a broker that can die, and sudden death."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from store.broker import make_celery
from tests import services
from tests.worker.conftest import Service, environment, mark, service, settings, start
from worker.services.sweeper import Sweeper

__all__ = ["environment", "mark", "service", "settings", "start"]

WORKER = str(Path(__file__).parents[1] / "worker" / "fake_launcher.py")
DYING = str(Path(__file__).with_name("dying.py"))
BY_MESSAGE = {"MINILLM_POLL_SECONDS": "600"}
"""Settings of a worker that only a message from the broker makes look for work."""


class Broker:
    """A Valkey that a test may kill, restart and flush."""

    def __init__(self, folder: Path, *, aof: bool) -> None:
        self._folder = folder
        self._aof = aof
        self.url = f"redis+socket://{folder / 'valkey.sock'}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process, _ = services.start_valkey(self._folder, aof=self._aof)
        services.USED.add("valkey")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@pytest.fixture
def make_broker() -> Iterator[Callable[..., Broker]]:
    brokers: list[Broker] = []

    def make(*, aof: bool = True, started: bool = True) -> Broker:
        broker = Broker(Path(tempfile.mkdtemp(prefix="mv-")), aof=aof)
        brokers.append(broker)
        if started:
            broker.start()
        return broker

    yield make
    for broker in brokers:
        broker.kill()
        shutil.rmtree(broker._folder, ignore_errors=True)


@pytest.fixture
def broker(make_broker: Callable[..., Broker]) -> Broker:
    return make_broker()


def sweeper_of(service: Service, **changes: object) -> Sweeper:
    """A sweeper in this process, with its settings changed."""
    settings = service.settings.model_copy(update=changes)
    return Sweeper(service.database, settings, make_celery(settings))


def in_child(action: Callable[[], object], seconds: float = 30.0) -> int:
    """Run ``action`` in a forked child; its exit status: 0, 1 where it raised, minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(int(seconds))
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    """SIGKILL to this process: nothing of it gets to run any more."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_commit(number: int, when: str) -> None:
    """From now on the ``number``-th commit of this process is its last moment, ``before`` or ``after`` it is done."""
    seen = 0

    def count(_: Session) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            die()

    event.listen(Session, f"{when}_commit", count)
