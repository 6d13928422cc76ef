import math

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from minillm_core.errors import UserError
from minillm_core.spec import ResourceSpec
from minillm_core.train.distributed import Ranks
from minillm_core.train.engine import Engine, deepspeed_config, effective_zero_stage, scheduled_rate


class TestScheduledRate:
    def test_warm_up_is_linear_and_ends_at_the_peak(self):
        rates = [scheduled_rate("constant", step, peak=1.0, total=10, warmup=4) for step in range(6)]
        assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]

    def test_cosine_and_linear_fall_from_the_peak_to_zero(self):
        for schedule in ("cosine", "linear"):
            rates = [scheduled_rate(schedule, step, peak=2.0, total=8, warmup=0) for step in range(9)]
            assert rates[0] == 2.0 and rates[-1] == pytest.approx(0.0, abs=1e-12)
            assert rates == sorted(rates, reverse=True)
            assert rates[4] == pytest.approx(1.0)

    def test_cosine_formula(self):
        expected = 0.5 * (1 + math.cos(math.pi * 2 / 8))
        assert scheduled_rate("cosine", 2, peak=1.0, total=8, warmup=0) == pytest.approx(expected)


class TestZeroStage:
    @pytest.mark.parametrize(
        ("dtype", "asked", "world", "used"),
        [
            ("float32", 1, 1, 0),
            ("bfloat16", 0, 1, 1),
            ("float32", 1, 2, 1),
            ("float32", 3, 1, 3),
            ("bfloat16", 2, 4, 2),
        ],
    )
    def test_one_rank_partitions_nothing(self, dtype, asked, world, used):
        ranks = Ranks(0, world, Ranks.start().device)
        assert effective_zero_stage(ResourceSpec(zero_stage=asked), dtype, ranks) == used


def test_float16_without_accelerator_is_the_users_error():
    ranks = Ranks.start()
    if ranks.device.type != "cpu":
        pytest.skip("this machine has an accelerator")
    with pytest.raises(UserError) as raised:
        Engine(
            torch.nn.Linear(2, 2),
            learning_rate=1e-3,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            grad_clip=1.0,
            dtype="float16",
            resources=ResourceSpec(),
            ranks=ranks,
        )
    assert raised.value.param == "/training/dtype"


class TestFloat16:
    """What DeepSpeed is told for an accelerator, and how it says that float16 cannot go on."""

    @pytest.mark.parametrize("stage", [0, 1, 2, 3])
    def test_the_loss_scale_is_dynamic(self, stage):
        fp16 = deepspeed_config(stage, "float16", 1.0, False)["fp16"]
        assert fp16["enabled"] and fp16["loss_scale"] == 0
        assert fp16["initial_scale_power"] == 11 and fp16["hysteresis"] == 4 and fp16["loss_scale_window"] == 2000

    def test_other_formats_have_none(self):
        assert "fp16" not in deepspeed_config(1, "bfloat16", 1.0, False)
        assert deepspeed_config(1, "bfloat16", 1.0, False)["bf16"] == {"enabled": True}
        assert not {"fp16", "bf16"} & deepspeed_config(1, "float32", 1.0, False).keys()

    def test_an_overflow_of_the_scale_is_no_divergence(self):
        """DeepSpeed leaves the step out and lowers the scale; the norm is then not known."""
        engine = small_engine()
        engine._dtype = "float16"
        engine.backward(engine(torch.tensor([[math.inf, 0.0]])) * 0.0, last=True)
        assert engine.step(1e-3) is None
        engine.close()

    def test_an_overflow_at_the_lowest_scale_is_an_infinite_gradient(self, monkeypatch):
        scaler = DynamicLossScaler(1, scale_window=10, min_scale=1, delayed_shift=1, consecutive_hysteresis=False)
        engine = small_engine()
        monkeypatch.setattr(engine._engine, "step", lambda: scaler.update_scale(True))
        assert engine.step(1e-3) == math.inf
        engine.close()


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(2, 1)

    def forward(self, x_NI):
        return self.model(x_NI).sum()


def small_engine() -> Engine:
    return Engine(
        Small(),
        learning_rate=1e-3,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        grad_clip=1.0,
        dtype="float32",
        resources=ResourceSpec(),
        ranks=Ranks.start(),
    )


def test_the_norm_is_that_before_clipping_and_the_update_is_clipped():
    engine = small_engine()
    before = engine.module.model.weight.detach().clone()
    engine.backward(engine(torch.tensor([[30.0, 40.0]])), last=True)
    assert engine.step(0.0) == pytest.approx(math.sqrt(30**2 + 40**2 + 1))
    assert torch.equal(engine.module.model.weight, before)
    engine.close()


def test_a_gradient_that_is_not_finite_is_told():
    engine = small_engine()
    engine.backward(engine(torch.tensor([[math.inf, 0.0]])) * 0.0, last=True)
    assert not math.isfinite(engine.step(1e-3))
    engine.close()
