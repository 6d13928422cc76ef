"""Ten steps of every method on the real teacher give the losses that were recorded (tests/record_losses.py)."""

from __future__ import annotations

import pytest

from tests import real_runs


@pytest.mark.slow
@pytest.mark.parametrize("name", real_runs.METHODS)
def test_losses_are_those_recorded(tmp_path, monkeypatch, name):
    monkeypatch.setenv("OMP_NUM_THREADS", str(real_runs.THREADS))
    recorded = real_runs.recorded(name)
    draws = real_runs.Draws(recorded.draws)
    found = real_runs.real_losses(tmp_path / name, name, draws)
    assert len(found) == real_runs.STEPS
    assert found == pytest.approx(recorded.losses, abs=1e-3)
    assert len(draws.drawn) == len(recorded.draws)
    if recorded.draws:
        assert draws.agreeing > 0.95
