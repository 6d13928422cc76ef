"""Announcing waits for nobody: not for a broker that hangs, and not for one that is gone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from store.announcer import WAITING, Announcer
from tests.worker.conftest import wait_until


class Broker:
    """Stands for Celery: what was sent, and what happens to who sends."""

    def __init__(self, action: Callable[[], object] = lambda: None) -> None:
        self.sent: list[str] = []
        self.action = action

    def send_task(self, _name: str, *, args: list[str], **_: Any) -> None:
        self.sent.append(args[0])
        self.action()


def announcer(broker: Broker) -> Announcer:
    return Announcer(broker)  # type: ignore[arg-type]


def test_what_waits_is_sent_before_the_end() -> None:
    broker = Broker()
    announcing = announcer(broker)
    announcing.close()
    for number in range(50):
        announcing.announce(f"job_{number}")
    announcing.close()
    assert broker.sent == [f"job_{number}" for number in range(50)]


def test_a_broker_that_hangs_holds_nobody_up() -> None:
    going_on = threading.Event()
    broker = Broker(going_on.wait)
    announcing = announcer(broker)
    for number in range(3 * WAITING):  # more than are kept: the rest is announced by a sweep
        announcing.announce(f"job_{number}")
    announcing.close(0.01)
    wait_until(lambda: broker.sent == ["job_0"], 10)
    going_on.set()
    wait_until(lambda: len(broker.sent) > WAITING // 2, 10)
    announcing.close()


def test_a_broker_that_refuses_is_left_alone_for_a_while() -> None:
    def refuse() -> None:
        raise ConnectionRefusedError("nobody there")

    broker = Broker(refuse)
    announcing = announcer(broker)
    announcing.announce("job_0")
    wait_until(lambda: broker.sent == ["job_0"], 10)
    for number in range(1, 100):
        announcing.announce(f"job_{number}")
    broker.action = lambda: None

    def answers_again() -> bool:
        announcing.announce("job_last")
        return "job_last" in broker.sent

    wait_until(answers_again, 20)
    assert len(broker.sent) < 50
    announcing.close()


def test_a_fault_of_ours_is_told_and_does_not_count_as_the_brokers(caplog: pytest.LogCaptureFixture) -> None:
    def fault() -> None:
        raise ImportError("No module named 'redis'")

    broker = Broker(fault)
    announcing = announcer(broker)
    with caplog.at_level(logging.ERROR):
        announcing.announce("job_0")
        announcing.announce("job_1")
        announcing.close()
    assert broker.sent == ["job_0", "job_1"]
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
