"""Linear layers through oneDNN and kernels: same results, same gradients, nothing else changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from minillm_core.models.linear import FastLinear, use_fast_products
from minillm_core.objectives import products

pytestmark = pytest.mark.skipif(not products.onednn_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True, params=[True, False], ids=["onednn", "mkl"])
def as_if_it_paid(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this processor would choose."""
    monkeypatch.setattr(products, "onednn_pays", lambda: request.param)
    monkeypatch.setattr(products, "kernels_pay", lambda: True)


def network(bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40, bias=bias), nn.SiLU(), nn.Linear(40, 7, bias=bias))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (1, 12)])
def test_values_and_gradients(bias: bool, shape: tuple[int, ...]) -> None:
    plain = network(bias)
    ours = copy.deepcopy(plain)
    assert use_fast_products(ours) == 2 and use_fast_products(ours) == 0
    inputs = [torch.randn(shape).requires_grad_() for _ in range(1)] * 2
    results = []
    for model, x in zip((plain, ours), inputs, strict=True):
        x.grad = None
        out = model(x)
        # A transposed gradient is one that is not contiguous.
        (out.transpose(0, -1) * torch.arange(out.numel()).view(out.transpose(0, -1).shape)).sum().backward()
        results.append([out, x.grad, *(parameter.grad for parameter in model.parameters())])
    assert out.shape == (*shape[:-1], 7)
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_frozen_weights_and_frozen_inputs_get_no_gradient() -> None:
    model = network(True)
    use_fast_products(model)
    model[0].requires_grad_(False)
    model(torch.randn(3, 12)).sum().backward()
    assert model[0].weight.grad is None and model[2].weight.grad is not None
    with torch.no_grad():
        assert not model(torch.randn(3, 12)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_formats_are_left_to_torch(dtype: torch.dtype) -> None:
    plain = network(True).to(dtype)
    ours = copy.deepcopy(plain)
    use_fast_products(ours)
    x = torch.randn(4, 12, dtype=dtype)
    assert torch.equal(ours(x), plain(x))


def test_no_tokens() -> None:
    model = network(True)
    use_fast_products(model)
    out = model(torch.zeros(0, 12))
    assert out.shape == (0, 7)
    out.sum().backward()


def test_state_and_subclasses_stay() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(3, 3), Special(3, 3))
    before = list(model.state_dict())
    assert use_fast_products(model) == 1
    assert list(model.state_dict()) == before
    assert type(model[0]) is FastLinear and type(model[1]) is Special


def test_nothing_changes_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "kernels_pay", lambda: False)
    model = network(True)
    assert use_fast_products(model) == 0 and type(model[0]) is nn.Linear
