"""Products by whichever library, or by a kernel of this project where that is faster."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from minillm_core.native import panels
from minillm_core.native.library import load
from minillm_core.objectives import products

pytestmark = pytest.mark.skipif(load() is None, reason="no C++ compiler here")

WIDE = products._MANY_OUTPUTS


@pytest.fixture(autouse=True)
def mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_pays", lambda: False)
    monkeypatch.setattr(products, "_has_avx512", lambda: False)
    monkeypatch.setattr(products, "kernels_pay", lambda: False)
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("tokens", "outputs", "by_rows"), [(1, WIDE, True), (33, WIDE + 5, True), (33, WIDE - 1, False), (513, WIDE, False)]
)
def test_which_products_go_by_rows(tokens: int, outputs: int, by_rows: bool) -> None:
    x, weight = torch.randn(tokens, 5), torch.randn(outputs, 5)
    expected = (x.double() @ weight.double().t()).float()
    out = torch.empty(tokens, outputs)
    with mock.patch.object(panels, "product_by_rows", wraps=panels.product_by_rows) as kernel:
        torch.testing.assert_close(products.linear(x, weight), expected, rtol=1e-5, atol=1e-5)
        products.multiply_into(out, x, weight.t())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert kernel.call_count == (2 if by_rows else 0)


def test_sums_and_other_layouts_stay_with_the_library() -> None:
    x, weight = torch.randn(4, 6), torch.randn(WIDE, 6)
    out = torch.ones(4, WIDE)
    across = torch.empty(WIDE, 4).t()
    with mock.patch.object(panels, "product_by_rows", side_effect=AssertionError):
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


@pytest.mark.parametrize("pays", [True, False])
def test_sums_over_tokens(monkeypatch: pytest.MonkeyPatch, pays: bool) -> None:
    monkeypatch.setattr(products, "kernels_pay", lambda: pays)
    grad, x = torch.randn(9, 7), torch.randn(9, 5)
    out = torch.ones(7, 5)
    with mock.patch.object(panels, "gradient_by_weight", wraps=panels.gradient_by_weight) as kernel:
        torch.testing.assert_close(products.gradient_by_weight(grad, x), grad.t() @ x)
        products.multiply_into(out, grad.t(), x, add=True)
        assert kernel.call_count == (2 if pays else 0)
        torch.testing.assert_close(out, 1 + grad.t() @ x)
        products.multiply_into(out, grad.t(), x)
        assert kernel.call_count == (3 if pays else 0)
        torch.testing.assert_close(out, grad.t() @ x)
        # Operands that lie otherwise, other formats, and nothing to sum.
        across = x.t().contiguous().t()
        torch.testing.assert_close(products.gradient_by_weight(grad, across), grad.t() @ x)
        exact = products.gradient_by_weight(grad.double(), x.double())
        torch.testing.assert_close(exact, grad.double().t() @ x.double())
        assert torch.equal(products.gradient_by_weight(grad[:0], x[:0]), torch.zeros(7, 5))
        assert kernel.call_count == (3 if pays else 0)


@pytest.mark.parametrize(
    ("processor", "capability", "kernels", "whole", "pairs"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t: avx512_bf16\n", "AVX512", True, True, True),
        ("vendor_id\t: AuthenticAMD\nflags\t: avx512f\n", "AVX512", True, True, False),
        ("vendor_id\t: GenuineIntel\nflags\t: amx_bf16\n", "AVX512", False, True, True),
        ("vendor_id\t: AuthenticAMD\nflags\t: avx2\n", "AVX2", False, False, False),
    ],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, processor: str, capability: str, kernels: bool, whole: bool, pairs: bool
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(products, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "bfloat16_pays", products.bfloat16_pays.__wrapped__)
    assert products.kernels_pay.__wrapped__() is kernels
    assert products.panels_pay.__wrapped__() is whole
    assert products.pairs_pay.__wrapped__() is pairs


def test_few_numbers_of_tokens_where_each_costs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")

    def numbers(dtype: torch.dtype, device: torch.device = cpu) -> list[int]:
        return [products.padded_tokens(tokens, dtype, device) for tokens in (1, 64, 65, 80, 1023, 1025, 2049)]

    as_they_are, padded = [1, 64, 65, 80, 1023, 1025, 2049], [1, 64, 80, 80, 1024, 1056, 2112]
    assert numbers(torch.float32) == as_they_are and numbers(torch.bfloat16) == padded
    monkeypatch.setattr(products, "onednn_pays", lambda: True)
    assert numbers(torch.float32) == padded and numbers(torch.float64) == as_they_are
    assert numbers(torch.float32, torch.device("meta")) == as_they_are
