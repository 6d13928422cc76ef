"""Ten steps of every method on the real teacher give the losses that were recorded (tests/record_losses.py)."""

from __future__ import annotations

import pytest

from tests import real_runs


@pytest.mark.slow
@pytest.mark.parametrize("name", real_runs.METHODS)
def test_losses_are_those_recorded(tmp_path, monkeypatch, name):
    monkeypatch.setenv("OMP_NUM_THREADS", str(real_runs.THREADS))
    recorded = real_runs.recorded_losses(name)
    if recorded is None:
        pytest.skip(f"nothing recorded for {real_runs.processor()}: python -m tests.record_losses {name}")
    assert len(recorded) == real_runs.STEPS
    assert real_runs.real_losses(tmp_path / name, name) == pytest.approx(recorded, abs=1e-3)
