"""What the trainer's tests share."""

from __future__ import annotations

import pytest

from minillm_core.native import ops


@pytest.fixture(params=["kernels", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Once with the project's kernels, once as where there are none."""
    if request.param == "torch":
        monkeypatch.setattr(ops, "load", lambda: None)
    return bool(request.param == "kernels")
