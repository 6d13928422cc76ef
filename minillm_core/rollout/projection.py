"""Matrix products with fixed weights, in the form that is fastest for decoding.

On a CPU torch sends float32 products to MKL and reorders bfloat16 weights at every call; here the
weights are reordered once for oneDNN, and what follows a product (activation, product, residual)
is done while the result is still in cache. Where MKL is the faster one for many tokens, a model that
mostly scores whole rows keeps plain weights instead. docs/performance.md has the figures.

Axes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from minillm_core.native import ops
from minillm_core.objectives import products


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


class Projection:
    """``x @ weight.T + bias`` with weights that stay as they are.

    They are copied unless ``many_tokens`` says that what passes are whole rows rather than single
    tokens of them: the weights given are then used themselves where nothing is gained by packing.
    """

    def __init__(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None, *, many_tokens: bool = False
    ) -> None:
        plain = many_tokens and weight_OI.dtype == torch.float32 and not products.onednn_pays()
        self.packed = not plain and _packable(weight_OI)
        self._weight: Any = weight_OI
        self._bias = bias_O
        if self.packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
        elif not many_tokens:
            self._weight = weight_OI.clone()
        if bias_O is not None and not many_tokens:
            self._bias = bias_O.clone()

    def __call__(self, x_NI: torch.Tensor) -> torch.Tensor:
        """(N, O)."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, self._bias, "none", [], "")
        return nn.functional.linear(x_NI, self._weight, self._bias)

    def plus(self, x_NI: torch.Tensor, other_NO: torch.Tensor) -> torch.Tensor:
        """The product plus ``other``, (N, O), which may be overwritten by it."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x_NI, other_NO, self._weight, self._bias, "add")
        if self._bias is None:
            return other_NO.addmm_(x_NI, self._weight.t())
        return nn.functional.linear(x_NI, self._weight, self._bias).add_(other_NO)

    def silu(self, x_NI: torch.Tensor) -> torch.Tensor:
        """silu of the product, (N, O)."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, self._bias, "swish", [], "")
        return nn.functional.silu(nn.functional.linear(x_NI, self._weight, self._bias), inplace=True)

    def times(self, x_NI: torch.Tensor, other_NO: torch.Tensor) -> torch.Tensor:
        """The product times ``other``, elementwise, (N, O)."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x_NI, other_NO, self._weight, self._bias, "mul")
        return nn.functional.linear(x_NI, self._weight, self._bias).mul_(other_NO)


def gated(x_NI: torch.Tensor, gate: Projection, up: Projection) -> torch.Tensor:
    """``silu(gate(x)) * up(x)``, (N, O)."""
    if not gate.packed and ops.fits(x_NI, half=True):
        gate_NO = gate(x_NI)
        return ops.silu_times(gate_NO, up(x_NI), gate_NO)
    return up.times(x_NI, gate.silu(x_NI))
