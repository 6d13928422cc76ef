"""Whether a trainer still advances."""

from __future__ import annotations

import pytest

from minillm_core.spec import MessageEvent, MetricsEvent, Phase, PhaseEvent, ProgressEvent
from worker.attempt.watchdog import Watchdog


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watchdog(clock: Clock) -> Watchdog:
    return Watchdog(start_seconds=100.0, progress_seconds=10.0, clock=clock)


def _progress(step: int, phase: Phase = Phase.TRAINING) -> ProgressEvent:
    return ProgressEvent(seq=1, time="", phase=phase, step=step, total_steps=10, fraction=step / 10)


def test_the_first_step_may_take_longer(watchdog: Watchdog, clock: Clock) -> None:
    watchdog.observe(PhaseEvent(seq=1, time="", phase=Phase.TRAINING))
    clock.now = 99.0
    assert not watchdog.stalled
    clock.now = 101.0
    assert watchdog.stalled


def test_a_step_that_does_not_come_is_noticed(watchdog: Watchdog, clock: Clock) -> None:
    watchdog.observe(_progress(1))
    clock.now = 11.0
    assert watchdog.stalled


def test_neither_messages_nor_the_same_progress_are_work(watchdog: Watchdog, clock: Clock) -> None:
    watchdog.observe(_progress(1))
    clock.now = 9.0
    watchdog.observe(MessageEvent(seq=2, time="", code="waiting", message=""))
    watchdog.observe(_progress(1))
    clock.now = 11.0
    assert watchdog.stalled


def test_measurements_and_steps_are_work(watchdog: Watchdog, clock: Clock) -> None:
    watchdog.observe(_progress(1))
    clock.now = 9.0
    watchdog.observe(MetricsEvent(seq=2, time="", phase=Phase.TRAINING, step=1, values={}))
    clock.now = 18.0
    watchdog.observe(_progress(2))
    clock.now = 27.0
    assert not watchdog.stalled


def test_exporting_has_no_steps(watchdog: Watchdog, clock: Clock) -> None:
    watchdog.observe(_progress(1))
    watchdog.observe(PhaseEvent(seq=2, time="", phase=Phase.EXPORTING))
    clock.now = 50.0
    assert not watchdog.stalled


def test_a_restart_forgives_a_silence_that_was_not_the_trainers(watchdog: Watchdog, clock: Clock) -> None:
    watchdog.observe(_progress(1))
    clock.now = 50.0
    watchdog.restart()
    assert not watchdog.stalled
