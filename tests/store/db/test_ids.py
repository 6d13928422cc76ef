from __future__ import annotations

import re
import threading

import pytest

from store.db import ids


def test_shape_and_order() -> None:
    made = [ids.new_id("job") for _ in range(2000)]
    assert all(re.fullmatch(r"job_[0-9a-hjkmnp-tv-z]{26}", name) for name in made)
    assert made == sorted(made) and len(set(made)) == len(made)


def test_order_survives_a_clock_that_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ids.new_id("job")
    monkeypatch.setattr(ids.time, "time_ns", lambda: 0)
    assert ids.new_id("job") > first


def test_threads_never_meet() -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend(ids.new_id("evt") for _ in range(500))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2000
