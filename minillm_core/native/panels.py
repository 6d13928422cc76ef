"""Matrix products with weights, or tokens, in panels: those of this project's kernels (see :mod:`.ops`).

Axes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minillm_core.native.library import load
from minillm_core.native.ops import address, kernel

Then = Literal["store", "add", "gate"]
"""What a product p does to what is there, o: it becomes p, o + p, or silu(o) * p."""
_THEN = {"store": 0, "add": 1, "gate": 2}


@dataclass(frozen=True)
class Panels:
    """A weight (O, I) as :func:`panel_product` reads it: some outputs side by side, input by input."""

    memory: Tensor
    inputs: int
    outputs: int


def pack(weight_OI: Tensor, dtype: torch.dtype) -> Panels:
    """Panels of ``dtype``, float32 or bfloat16 (rounded), of a float32 weight, copied."""
    outputs, inputs = weight_OI.shape
    panels = Panels(torch.empty(_panel_count(outputs) * inputs, dtype=dtype), inputs, outputs)
    _pack("pack", panels.memory, weight_OI, panels.memory)
    return panels


def panel_product(
    x_NI: Tensor,
    weight: Panels,
    bias_O: Tensor | None,
    out_NO: Tensor | None = None,
    *,
    then: Then = "store",
) -> Tensor:
    """``x @ weight.T + bias``, float32, whatever the format of the weight: p.

    ``out`` becomes what ``then`` says; it is made where left out. The last axis of both is contiguous.
    """
    return _panel_product("product", weight.memory, x_NI, weight, bias_O, out_NO, then)


@dataclass(frozen=True)
class PairPanels(Panels):
    """A weight (O, I) as :func:`pair_product` reads it: two inputs of an output side by side."""


def pack_pairs(weight_OI: Tensor) -> PairPanels:
    """Panels of a weight of an even number of inputs, copied; float32 is rounded to bfloat16."""
    outputs, inputs = weight_OI.shape
    panels = PairPanels(torch.empty(_panel_count(outputs) * inputs, dtype=torch.bfloat16), inputs, outputs)
    _pack("pack_pairs", weight_OI, weight_OI, panels.memory)
    return panels


def pair_product(
    x_NI: Tensor,
    weight: PairPanels,
    bias_O: Tensor | None,
    out_NO: Tensor | None = None,
    *,
    then: Then = "store",
) -> Tensor:
    """The same as :func:`panel_product` in bfloat16, with sums in float32."""
    return _panel_product("product_of_pairs", x_NI, x_NI, weight, bias_O, out_NO, then)


def _panel_product(
    name: str, like: Tensor, x_NI: Tensor, weight: Panels, bias_O: Tensor | None, out_NO: Tensor | None, then: Then
) -> Tensor:
    if out_NO is None:
        out_NO = torch.empty(x_NI.shape[0], weight.outputs, dtype=x_NI.dtype)
    kernel(name, like)(
        x_NI.data_ptr(),
        x_NI.stride(0),
        weight.memory.data_ptr(),
        address(bias_O),
        out_NO.data_ptr(),
        out_NO.stride(0),
        x_NI.shape[0],
        weight.inputs,
        weight.outputs,
        _THEN[then],
    )
    return out_NO


def _panel_count(outputs: int) -> int:
    """Outputs, rounded up to whole panels."""
    library = load()
    assert isinstance(library, ctypes.CDLL)
    panel = int(library.panel_outputs())
    return -(-outputs // panel) * panel


def _pack(name: str, like: Tensor, weight_OI: Tensor, memory: Tensor) -> None:
    if weight_OI.stride(1) != 1:
        weight_OI = weight_OI.contiguous()
    outputs, inputs = weight_OI.shape
    kernel(name, like)(weight_OI.data_ptr(), weight_OI.stride(0), memory.data_ptr(), inputs, outputs)


def product_by_rows(x_NI: Tensor, weight_OI: Tensor, out_NO: Tensor) -> Tensor:
    """``x @ weight.T`` into ``out`` for few tokens and very many outputs, the weight as it is; float32.

    The last axis of each is contiguous.
    """
    tokens, inputs = x_NI.shape
    panels = torch.empty(_panel_count(tokens) * inputs)
    _pack("pack", panels, x_NI, panels)
    kernel("product_by_rows", x_NI)(
        panels.data_ptr(),
        weight_OI.data_ptr(),
        weight_OI.stride(0),
        out_NO.data_ptr(),
        out_NO.stride(0),
        tokens,
        inputs,
        weight_OI.shape[0],
    )
    return out_NO


def gradient_by_weight(grad_NO: Tensor, x_NI: Tensor, out_OI: Tensor, *, add: bool = False) -> Tensor:
    """``grad.T @ x`` into ``out``, or added to it; float32. The last axis of each is contiguous."""
    (tokens, outputs), inputs = grad_NO.shape, x_NI.shape[1]
    panels = torch.empty(tokens * _panel_count(inputs))
    kernel("gradient_by_weight", grad_NO)(
        grad_NO.data_ptr(),
        grad_NO.stride(0),
        x_NI.data_ptr(),
        x_NI.stride(0),
        panels.data_ptr(),
        out_OI.data_ptr(),
        out_OI.stride(0),
        tokens,
        inputs,
        outputs,
        int(add),
    )
    return out_OI
