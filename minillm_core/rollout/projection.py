"""Matrix products with fixed weights, in the form that is fastest for decoding.

On a CPU torch sends float32 products to MKL and reorders bfloat16 weights at every call. Here weights are
reordered once, and what follows a product (activation, product, residual) is done while the result is still in
cache: in panels for this project's kernels, which read float32 or bfloat16 weights and compute in float32, or multiply
pairs of bfloat16 where the processor can; for oneDNN where there are no kernels. A model that mostly scores whole rows
keeps plain weights where MKL is the faster one for many tokens. docs/performance.md has the figures.

Axes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from minillm_core.native import ops, panels
from minillm_core.objectives import products


class Projection:
    """``x @ weight.T + bias`` with the weights as they are given; they are not copied."""

    makes_code = True
    """Whether a library makes code for each number of tokens and keeps it."""

    def __init__(self, weight_OI: Any, bias_O: torch.Tensor | None) -> None:
        self._weight = weight_OI
        self._bias = bias_O

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        """(N, O)."""
        return products.linear(x_NI, self._weight, self._bias)

    def plus(self, x_NI: torch.Tensor, other_NO: torch.Tensor) -> torch.Tensor:
        """The product plus ``other``, (N, O), which may be overwritten by it."""
        if self._bias is None:
            return other_NO.addmm_(x_NI, self._weight.t())
        return self(x_NI).add_(other_NO)

    def gated(self, x_NI: torch.Tensor, up: Any) -> torch.Tensor:
        """``silu(self(x)) * up(x)``, (N, O); ``up`` is of this class too."""
        gate_NO, up_NO = self(x_NI), up(x_NI)
        if ops.fits(gate_NO, half=True):
            return ops.silu_times(gate_NO, up_NO, gate_NO)
        return nn.functional.silu(gate_NO, inplace=True).mul_(up_NO)


class OnednnProjection(Projection):
    """A copy of the weights, packed for oneDNN."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
        super().__init__(packed, None if bias_O is None else bias_O.clone())

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, self._bias, "none", [], "")

    def plus(self, x_NI: torch.Tensor, other_NO: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, other_NO, self._weight, self._bias, "add")

    def gated(self, x_NI: torch.Tensor, up: Any) -> torch.Tensor:
        gate_NO = torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, self._bias, "swish", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, gate_NO, up._weight, up._bias, "mul")


class PanelProjection(Projection):
    """A copy of float32 weights, packed for this project's kernels; rounded to bfloat16 where ``half``."""

    makes_code = False

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, *, half: bool) -> None:
        packed = panels.pack(weight_OI, torch.bfloat16 if half else torch.float32)
        super().__init__(packed, None if bias_O is None else bias_O.clone())

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        return panels.panel_product(x_NI, self._weight, self._bias)

    def plus(self, x_NI: torch.Tensor, other_NO: torch.Tensor) -> torch.Tensor:
        return panels.panel_product(x_NI, self._weight, self._bias, other_NO, then="add")

    def gated(self, x_NI: torch.Tensor, up: Any) -> torch.Tensor:
        return panels.panel_product(x_NI, up._weight, up._bias, self(x_NI), then="gate")


class PairProjection(Projection):
    """A copy of the weights in bfloat16, packed for this project's kernels."""

    makes_code = False

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__(panels.pack_pairs(weight_OI), None if bias_O is None else bias_O.to(torch.bfloat16, copy=True))

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        return panels.pair_product(x_NI, self._weight, self._bias)

    def plus(self, x_NI: torch.Tensor, other_NO: torch.Tensor) -> torch.Tensor:
        return panels.pair_product(x_NI, self._weight, self._bias, other_NO, then="add")

    def gated(self, x_NI: torch.Tensor, up: Any) -> torch.Tensor:
        return panels.pair_product(x_NI, up._weight, up._bias, self(x_NI), then="gate")


def project(
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    half: bool = False,
    many_tokens: bool = False,
) -> Projection:
    """The fastest form of these weights in ``dtype`` (their own when left out), a copy of them unless ``many_tokens``.

    ``many_tokens``: what passes are whole rows rather than single tokens of them, and the weights given are
    used themselves where nothing is gained by packing. ``half``: float32 weights may be rounded to bfloat16, which only
    the kernels do (:func:`widens`); what comes and goes is in ``dtype`` in any case.
    """
    dtype = dtype or weight_OI.dtype
    if _pairs(weight_OI, dtype):
        return PairProjection(weight_OI, bias_O)
    weight_OI, bias_O = weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype)
    if dtype == torch.float32 and many_tokens and not products.panels_pay():
        return Projection(weight_OI, bias_O)
    if ops.fits(weight_OI):
        return PanelProjection(weight_OI, bias_O, half=half)
    if _packable(weight_OI):
        return OnednnProjection(weight_OI, bias_O)
    if many_tokens:
        return Projection(weight_OI, bias_O)
    return Projection(weight_OI.clone(), None if bias_O is None else bias_O.clone())


def _pairs(weight_OI: torch.Tensor, dtype: torch.dtype) -> bool:
    wanted = dtype == torch.bfloat16 and weight_OI.shape[1] % 2 == 0 and products.pairs_pay()
    return wanted and ops.fits(weight_OI, half=True)


def widens(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights of ``dtype`` are better multiplied in float32: bfloat16 on a CPU that cannot multiply it."""
    cpu = device.type == "cpu" and not products.bfloat16_pays()
    return cpu and dtype == torch.bfloat16 and not products.onednn_pays() and ops.fits(torch.empty(0))


def _packable(weight_OI: torch.Tensor) -> bool:
    """Whether oneDNN takes this weight; asked once by a product of one row."""
    if weight_OI.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
        torch.ops.mkldnn._linear_pointwise(weight_OI[:1], packed, None, "none", [], "")
    except (RuntimeError, AttributeError):
        return False
    return True
