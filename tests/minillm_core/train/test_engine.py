import math

import pytest

from minillm_core.errors import UserError
from minillm_core.spec import ResourceSpec
from minillm_core.train.distributed import Ranks
from minillm_core.train.engine import Engine, effective_zero_stage, scheduled_rate


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
        ranks = Ranks(0, world, 0, Ranks.start().device)
        assert effective_zero_stage(ResourceSpec(zero_stage=asked), dtype, ranks) == used


def test_float16_without_accelerator_is_the_users_error():
    import torch

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
