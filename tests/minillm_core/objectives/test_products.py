"""Products by whichever library: logits of few tokens go to a kernel of this project where that is faster."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from minillm_core.native import ops
from minillm_core.native.library import load
from minillm_core.objectives import products

pytestmark = pytest.mark.skipif(load() is None, reason="no C++ compiler here")

WIDE = products._MANY_OUTPUTS


@pytest.fixture(autouse=True)
def mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_pays", lambda: False)
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("tokens", "outputs", "by_rows"), [(1, WIDE, True), (33, WIDE + 5, True), (33, WIDE - 1, False), (513, WIDE, False)]
)
def test_which_products_go_by_rows(tokens: int, outputs: int, by_rows: bool) -> None:
    x, weight = torch.randn(tokens, 5), torch.randn(outputs, 5)
    expected = (x.double() @ weight.double().t()).float()
    out = torch.empty(tokens, outputs)
    with mock.patch.object(ops, "product_by_rows", wraps=ops.product_by_rows) as kernel:
        torch.testing.assert_close(products.linear(x, weight), expected, rtol=1e-5, atol=1e-5)
        products.multiply_into(out, x, weight.t())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert kernel.call_count == (2 if by_rows else 0)


def test_sums_and_other_layouts_stay_with_the_library() -> None:
    x, weight = torch.randn(4, 6), torch.randn(WIDE, 6)
    out = torch.ones(4, WIDE)
    across = torch.empty(WIDE, 4).t()
    with mock.patch.object(ops, "product_by_rows", side_effect=AssertionError):
        products.multiply_into(out, x, weight.t(), add=True)
        products.multiply_into(across, x, weight.t())
        turned = products.linear(x.t().contiguous().t(), weight)
        biased = products.linear(x, weight, torch.ones(WIDE))
    expected = x @ weight.t()
    for found, wanted in ((out, expected + 1), (across, expected), (turned, expected), (biased, expected + 1)):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_what_is_recorded_keeps_its_graph() -> None:
    x, weight = torch.randn(4, 6), torch.randn(WIDE, 6, requires_grad=True)
    products.linear(x, weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(WIDE, 6))
