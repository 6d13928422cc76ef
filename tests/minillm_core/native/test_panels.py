"""Products in panels against torch in float64: odd sizes, operands and results that are parts of others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from minillm_core.native import panels
from minillm_core.native.library import load

pytestmark = pytest.mark.skipif(load() is None, reason="no C++ compiler here")


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=tolerance)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("tokens", [1, 5, 12, 13, 200])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (130, 37), (576, 64), (300, 97)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_and_many(tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    x = torch.randn(tokens, inputs + 3)[:, :inputs]
    weight, bias = torch.randn(outputs, inputs + 2)[:, 2:] / inputs**0.5, torch.randn(outputs)
    rounded = weight.to(dtype).double()
    packed = panels.pack(weight, dtype)
    product = x.double() @ rounded.t()
    near(panels.panel_product(x, packed, None), product, 1e-5)
    near(panels.panel_product(x, packed, bias), product + bias, 1e-5)
    other = torch.randn(tokens, outputs)
    expected = product + bias + other
    out = other.clone()
    assert panels.panel_product(x, packed, bias, out, then="add") is out
    near(out, expected, 1e-5)
    near(panels.panel_product(x, packed, None, other.clone(), then="gate"), functional.silu(other) * product, 1e-5)


@pytest.mark.parametrize("tokens", [1, 15, 33, 200])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (130, 37), (300, 97)])
def test_by_rows(tokens: int, inputs: int, outputs: int) -> None:
    x, weight = torch.randn(tokens, inputs + 3)[:, 3:], torch.randn(outputs, inputs + 1)[:, :inputs] / inputs**0.5
    wide = torch.full((tokens, outputs + 2), 7.0)
    panels.product_by_rows(x, weight, wide[:, 1:-1])
    near(wide[:, 1:-1], x.double() @ weight.double().t(), 1e-5)
    assert (wide[:, 0] == 7.0).all() and (wide[:, -1] == 7.0).all()


@pytest.mark.parametrize("tokens", [1, 5, 385, 800])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 130), (100, 97), (64, 12)])
def test_gradient_by_weight(tokens: int, inputs: int, outputs: int) -> None:
    x, grad = torch.randn(tokens, inputs + 3)[:, 3:], torch.randn(tokens, outputs + 1)[:, :outputs] / tokens**0.5
    wide = torch.full((outputs, inputs + 2), 7.0)
    expected = grad.double().t() @ x.double()
    panels.gradient_by_weight(grad, x, wide[:, 1:-1])
    near(wide[:, 1:-1], expected, 1e-5)
    panels.gradient_by_weight(grad, x, wide[:, 1:-1], add=True)
    near(wide[:, 1:-1], 2 * expected, 1e-5)
    assert (wide[:, 0] == 7.0).all() and (wide[:, -1] == 7.0).all()


@pytest.mark.parametrize("inputs", [2, 90, 1100])
@pytest.mark.parametrize("rows", [1, 6, 13, 17, 32, 200])
def test_pairs(rows: int, inputs: int) -> None:
    """Sums are float32: what is left is the rounding of the result. Rows and weights may be parts of others."""
    weight, x = torch.randn(45, inputs + 6).bfloat16()[:, :inputs], torch.randn(rows, inputs + 4).bfloat16()[:, :inputs]
    expected = x.double() @ weight.double().t()
    found = panels.pair_product(x, panels.pack_pairs(weight), None)
    torch.testing.assert_close(found.double(), expected, atol=1e-4 * inputs**0.5, rtol=2.0**-8)
    exact = torch.randn(45, inputs)
    from_exact, from_rounded = panels.pack_pairs(exact), panels.pack_pairs(exact.bfloat16())
    assert torch.equal(from_exact.memory.view(torch.int16), from_rounded.memory.view(torch.int16))
