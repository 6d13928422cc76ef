"""Runs in half precision: float32 where it counts, loss scaling, and what float16 does when it overflows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from minillm_core.spec import DType
from minillm_core.train import engine
from minillm_core.train.stop import Stopped
from tests.minillm_core.tiny_runs import last_weights, losses, of_type, run_here, write_run

KD = {"type": "kd"}


@pytest.fixture(autouse=True)
def float16_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU can compute it, if slowly: what refuses it steps aside."""
    monkeypatch.setattr(engine, "check_dtype", lambda dtype, device: None)
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)


def run(folder: Path, dtype: DType, **training: Any) -> list[dict[str, Any]]:
    return run_here(write_run(folder, method=KD, training={"dtype": dtype, **training}))


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 1e-2), ("float16", 2e-3)])
def test_losses_and_norms_are_those_of_float32(tmp_path: Path, dtype: DType, tolerance: float) -> None:
    """The norm too: the loss scale is no part of it."""
    expected, found = run(tmp_path / "exact", "float32"), run(tmp_path / "half", dtype)
    assert len(losses(found)) == 6
    assert losses(found) == pytest.approx(losses(expected), rel=tolerance)
    assert losses(found, "grad_norm") == pytest.approx(losses(expected, "grad_norm"), rel=3 * tolerance)
    assert {tensor.dtype for name, tensor in last_weights(tmp_path / "half").items()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_steps_smaller_than_the_formats_spacing_add_up(tmp_path: Path, dtype: DType) -> None:
    """The optimizer has weights in float32. A step of 1e-4 is lost in a bfloat16 weight of 0.1."""
    settings = {"learning_rate": 1e-4, "max_steps": 20, "eval_every": 20}
    expected, found = losses(run(tmp_path / "exact", "float32", **settings)), None
    assert expected[0] - expected[-1] > 0.1
    found = losses(run(tmp_path / "half", dtype, **settings))
    assert found[-1] == pytest.approx(expected[-1], abs=0.02)


class TestOverflow:
    """The first loss scale is far too large: DeepSpeed leaves steps out and halves it until the gradients fit."""

    @pytest.fixture(autouse=True)
    def large_scale(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "_FP16_INITIAL_SCALE_POWER", 21)

    def test_steps_are_left_out_until_the_scale_fits(self, tmp_path: Path) -> None:
        # Every step has the same rows, so that a step that was left out shows as the same loss again.
        settings = {"rows_per_step": 32, "max_steps": 14, "eval_every": 14}
        found = run(tmp_path, "float16", **settings)
        steps = [event["values"] for event in of_type(found, "metrics") if "loss" in event["values"]]
        applied = ["grad_norm" in values for values in steps]
        assert not applied[0] and applied[-1] and applied == sorted(applied)
        for before, after, moved in zip(steps[:-1], steps[1:], applied[:-1], strict=True):
            assert (after["loss"] == pytest.approx(before["loss"], rel=1e-5)) == (not moved)
        assert of_type(found, "student")

    def test_the_scale_is_part_of_a_checkpoint(self, tmp_path: Path) -> None:
        settings = {"max_steps": 14, "eval_every": 14}
        whole = run(tmp_path / "whole", "float16", **settings)
        cut = write_run(tmp_path / "cut", method=KD, training={"dtype": "float16", **settings})
        with pytest.raises(Stopped):
            run_here(cut, stop_after=8)
        assert losses(run_here(cut)) == losses(whole)
        expected, found = last_weights(tmp_path / "whole"), last_weights(cut)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
