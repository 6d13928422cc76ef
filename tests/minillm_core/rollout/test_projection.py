"""Packed products against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, silu

from minillm_core.rollout import projection
from minillm_core.rollout.projection import Projection


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("packed", [True, False])
def test_products(dtype: torch.dtype, with_bias: bool, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        monkeypatch.setattr(projection, "_packable", lambda weight: False)
    torch.manual_seed(0)
    weight = torch.randn(24, 16).to(dtype)
    bias = torch.randn(24).to(dtype) if with_bias else None
    project = Projection(weight, bias)
    x, other = torch.randn(5, 16).to(dtype), torch.randn(5, 24).to(dtype)
    product = linear(x.double(), weight.double(), None if bias is None else bias.double())
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.03}
    torch.testing.assert_close(project(x).double(), product, **close)
    torch.testing.assert_close(project.silu(x).double(), silu(product), **close)
    torch.testing.assert_close(project.times(x, other).double(), product * other.double(), **close)
    torch.testing.assert_close(project.plus(x, other.clone()).double(), product + other.double(), **close)


def test_weights_are_copied() -> None:
    weight = torch.randn(8, 4)
    project = Projection(weight)
    x = torch.randn(2, 4)
    before = project(x).clone()
    weight.zero_()
    assert torch.equal(project(x), before)
