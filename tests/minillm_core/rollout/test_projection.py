"""Packed products against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, silu

from minillm_core.native import ops
from minillm_core.objectives import products
from minillm_core.rollout import projection
from minillm_core.rollout.projection import (
    OnednnProjection,
    PairProjection,
    PanelProjection,
    Projection,
    project,
    widens,
)

FORMS = ["panels", "pairs", "onednn", "plain", "shared"]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What weights become, whatever this processor would choose."""
    monkeypatch.setattr(products, "onednn_pays", lambda: request.param == "onednn")
    monkeypatch.setattr(products, "pairs_pay", lambda: request.param == "pairs")
    monkeypatch.setattr(products, "panels_pay", lambda: request.param != "shared")
    if request.param in ("plain", "onednn"):  # no kernels of our own
        monkeypatch.setattr(ops, "load", lambda: None)
    if request.param != "onednn":
        monkeypatch.setattr(projection, "_packable", lambda weight: False)
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("outputs", [24, 64, 37])
def test_products(dtype: torch.dtype, with_bias: bool, outputs: int, form: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(outputs, 16).to(dtype)
    bias = torch.randn(outputs).to(dtype) if with_bias else None
    made = project(weight, bias, many_tokens=form == "shared")
    if dtype == torch.float32:
        kinds = {"onednn": OnednnProjection, "plain": Projection, "shared": Projection}
        assert type(made) is kinds.get(form, PanelProjection)
    elif form == "pairs":
        assert type(made) is PairProjection
    x, other = torch.randn(5, 16).to(dtype), torch.randn(5, outputs).to(dtype)
    product = linear(x.double(), weight.double(), None if bias is None else bias.double())
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.03}
    torch.testing.assert_close(made(x).double(), product, **close)
    torch.testing.assert_close(made.plus(x, other.clone()).double(), product + other.double(), **close)
    gate = project(torch.randn(outputs, 16).to(dtype), bias, many_tokens=form == "shared")
    expected = silu(gate(x).double()) * product
    torch.testing.assert_close(gate.gated(x, made).double(), expected, **close)


@pytest.mark.parametrize("rows", [1, 6, 13, 200])
def test_rounded_weights(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_pays", lambda: False)
    monkeypatch.setattr(products, "bfloat16_pays", lambda: False)
    assert widens(torch.bfloat16, torch.device("cpu")) and not widens(torch.float32, torch.device("cpu"))
    torch.manual_seed(0)
    weight, x = torch.randn(45, 300), torch.randn(rows, 300)
    made = project(weight, half=True)
    rounded = weight.bfloat16().double()
    torch.testing.assert_close(made(x).double(), x.double() @ rounded.t(), atol=1e-4, rtol=1e-5)


def test_weights_that_pair() -> None:
    """Where the processor multiplies pairs; an odd number of inputs has none."""
    kind = type(project(torch.randn(8, 4).bfloat16()))
    assert (kind is PairProjection) == (products.pairs_pay())
    assert type(project(torch.randn(8, 5).bfloat16())) is not PairProjection
    assert type(project(torch.randn(8, 4))) is not PairProjection


@pytest.mark.parametrize("faster", [False, True])
def test_whole_rows(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In panels where they are faster, which make no code for each number of tokens; else weights are shared."""
    monkeypatch.setattr(products, "panels_pay", lambda: faster)
    made = project(torch.randn(8, 4), many_tokens=True)
    assert type(made) is (PanelProjection if faster else Projection) and made.makes_code is not faster


def test_weights_are_copied(form: str) -> None:
    weight = torch.randn(8, 4)
    made = project(weight, many_tokens=form == "shared")
    x = torch.randn(2, 4)
    before = made(x).clone()
    weight.zero_()
    assert torch.equal(made(x), before) == (form != "shared")
