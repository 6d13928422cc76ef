"""Ten steps of every method on the real teacher give the losses that were recorded (tests/record_losses.py)."""

from __future__ import annotations

import pytest

from tests import real_runs


@pytest.mark.slow
@pytest.mark.parametrize("name", real_runs.METHODS)
def test_losses_are_those_recorded(tmp_path, monkeypatch, name):
    monkeypatch.setenv("OMP_NUM_THREADS", str(real_runs.THREADS))
    recorded = real_runs.recorded_losses(name)
    found = real_runs.real_losses(tmp_path / name, name)
    assert len(found) == real_runs.STEPS
    assert found[: len(recorded)] == pytest.approx(recorded, abs=1e-3)
