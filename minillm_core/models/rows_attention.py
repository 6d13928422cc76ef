"""Causal attention of packed rows with the kernels of this project, as part of a graph.

Axes: N tokens of all rows joined, H query heads, R key-value heads, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm_core.native import ops


def attend(
    q_NHd: Tensor,
    k_NRd: Tensor,
    v_NRd: Tensor,
    offsets_B1: Tensor,
    *,
    scale: float,
    window: int | None,
    rotation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(N, H, d). Where there are kernels for the tensors: see :func:`~minillm_core.native.ops.fits`.

    With ``rotation`` (cosine and sine, each (N, d)) queries and keys are rotated first, **in place**: give it tensors
    that nothing else reads.
    """
    q_NHd, k_NRd, v_NRd = (_heads_together(tensor) for tensor in (q_NHd, k_NRd, v_NRd))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q_NHd, k_NRd, v_NRd)):
        mixed: Tensor = _RowsAttention.apply(q_NHd, k_NRd, v_NRd, offsets_B1, scale, window, rotation)  # type: ignore[no-untyped-call]
        return mixed
    _rotate(q_NHd, k_NRd, rotation)
    return ops.rows_attention(q_NHd, k_NRd, v_NRd, offsets_B1, scale=scale, window=window)[0]


def _heads_together(tensor_NHd: Tensor) -> Tensor:
    """The tensor with the heads of a token side by side in memory; tokens may be apart."""
    _, heads, width = tensor_NHd.shape
    together = tensor_NHd.stride(2) == 1 and (heads == 1 or tensor_NHd.stride(1) == width)
    return tensor_NHd if together else tensor_NHd.contiguous()


def _rotate(q_NHd: Tensor, k_NRd: Tensor, rotation: tuple[Tensor, Tensor] | None, *, back: bool = False) -> None:
    if rotation is not None:
        for part in (q_NHd, k_NRd):
            ops.rotate_halves(part, *rotation, back=back)


class _RowsAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_NHd: Tensor,
        k_NRd: Tensor,
        v_NRd: Tensor,
        offsets_B1: Tensor,
        scale: float,
        window: int | None,
        rotation: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        _rotate(q_NHd, k_NRd, rotation)
        out_NHd, log_sums_NH = ops.rows_attention(
            q_NHd, k_NRd, v_NRd, offsets_B1, scale=scale, window=window, log_sums=True
        )
        ctx.save_for_backward(q_NHd, k_NRd, v_NRd, out_NHd, log_sums_NH, offsets_B1)
        ctx.scale, ctx.window, ctx.rotation = scale, window, rotation
        return out_NHd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHd: Tensor) -> tuple[Tensor | None, ...]:
        q_NHd, k_NRd, v_NRd, out_NHd, log_sums_NH, offsets_B1 = ctx.saved_tensors
        by_q, by_k, by_v = ops.rows_attention_backward(
            q_NHd,
            k_NRd,
            v_NRd,
            out_NHd,
            log_sums_NH,
            grad_NHd.contiguous(),
            offsets_B1,
            scale=ctx.scale,
            window=ctx.window,
        )
        _rotate(by_q, by_k, ctx.rotation, back=True)
        return by_q, by_k, by_v, None, None, None, None
