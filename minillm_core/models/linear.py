"""Linear layers that compute their products, and the gradients of them, by the fastest way of this processor.

torch sends float32 products on a CPU to MKL, which on processors with AVX-512 that are not Intel's
is not always the fastest (docs/performance.md). Only what is slow there is replaced:
float32 on a CPU. Anything else goes through ``torch.nn.functional.linear`` as before.

Axes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minillm_core.objectives import products


class _Linear(torch.autograd.Function):
    """``x @ weight.T + bias``; the operator itself has no formula for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return products.linear(x_NI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        grad_NO = grad_NO.contiguous()
        by_x, by_weight, by_bias = ctx.needs_input_grad
        return (
            products.linear(grad_NO, weight_OI.t()) if by_x else None,
            products.gradient_by_weight(grad_NO, x_NI) if by_weight else None,
            grad_NO.sum(0) if by_bias else None,
        )


class FastLinear(nn.Linear):
    """A linear layer whose float32 products on a CPU go through :mod:`minillm_core.objectives.products`."""

    def forward(self, input: Tensor) -> Tensor:
        fits = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu" and input.numel() > 0
        if not fits or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        rows_NI = input.reshape(-1, self.in_features)
        if torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad):
            product: Tensor = _Linear.apply(rows_NI, self.weight, self.bias)  # type: ignore[no-untyped-call]
        else:
            product = products.linear(rows_NI, self.weight, self.bias)
        return product.view(*input.shape[:-1], self.out_features)


def use_fast_products(model: nn.Module) -> int:
    """Let the plain linear layers of ``model`` become :class:`FastLinear`, in place; returns how many.

    Names, parameters and results (up to rounding) stay as they are. Where torch's way is the fastest, nothing changes.
    """
    if not products.kernels_pay():
        return 0
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.__class__ = FastLinear
    return len(layers)
