"""How a wake-up reaches the worker."""

from __future__ import annotations

import stat
import threading

from store.db.ids import new_id
from worker.doorbell import Doorbell, ring


def _ring_aside(path: str, job_id: str) -> threading.Thread:
    thread = threading.Thread(target=ring, args=(path, job_id), daemon=True)
    thread.start()
    return thread


def test_the_ringer_waits_for_the_answer() -> None:
    with Doorbell() as doorbell:
        assert stat.S_IMODE(doorbell.path.parent.stat().st_mode) == 0o700
        ringer = _ring_aside(str(doorbell.path), new_id("job"))
        assert doorbell.wait(5.0)
        ringer.join(0.1)
        assert ringer.is_alive()
        doorbell.answer()
        ringer.join(5.0)
        assert not ringer.is_alive()
    assert not doorbell.path.exists()


def test_what_names_no_job_does_not_ring() -> None:
    with Doorbell() as doorbell:
        for message in ("", "job_1; rm -rf /", "x" * 10_000, "job_\u00e9"):
            ringer = _ring_aside(str(doorbell.path), message)
            ringer.join(5.0)
            assert not ringer.is_alive()
        assert not doorbell.wait(0.05)


def test_an_interrupt_ends_the_wait_without_a_ring() -> None:
    with Doorbell() as doorbell:
        doorbell.interrupt()
        assert not doorbell.wait(5.0)


def test_those_who_wait_at_the_end_are_let_go() -> None:
    with Doorbell() as doorbell:
        ringers = [_ring_aside(str(doorbell.path), new_id("job")) for _ in range(2)]
        assert doorbell.wait(5.0)
    for ringer in ringers:
        ringer.join(5.0)
        assert not ringer.is_alive()


def test_a_worker_that_is_gone_is_no_error() -> None:
    ring("/nowhere/doorbell", new_id("job"))
