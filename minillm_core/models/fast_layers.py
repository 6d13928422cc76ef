"""Layers of the LLaMA-shaped families with a backward pass written by hand, for float32 on a CPU.

Autograd keeps every intermediate of a gated layer and of a norm. Here a gated layer keeps its input
and its two projections (half of it), a norm its input and one number a token, and the rest is computed
again in the backward pass, which takes less time than reading it from memory; so are outputs of norms
(:mod:`.saved_norms`). Attention of packed rows
rotates its queries and keys where they lie and keeps nothing of the way there. What is not a matrix product
is done by this project's kernels, where there are any, in one pass over memory.

Axes: N tokens, D hidden width, I inner width, H heads, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, Qwen3RMSNorm

from minillm_core.models.linear import FastLinear, use_fast_products
from minillm_core.models.packed import PackedRows
from minillm_core.models.rows_attention import attend
from minillm_core.models.saved_norms import note
from minillm_core.native import ops
from minillm_core.objectives import products
from minillm_core.objectives.sweep import graph_is_kept


def use_fast_layers(model: nn.Module) -> int:
    """Replace what is known here and every plain linear layer, in place; returns how many layers.

    Names, parameters and results (up to rounding) stay as they are. Parameters are used outside of the
    forward pass of their own modules: not for ZeRO-3.
    """
    replaced = use_fast_products(model)
    for module in list(model.modules()):
        fast = _FAST.get(type(module))
        if fast is not None and (not issubclass(fast, _FastGated) or _is_plain(module)):
            module.__class__ = fast
            replaced += 1
    for module in model.modules():
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = getattr(module, name, None)
            if isinstance(norm, _FastNorm):
                norm.feeds_products = True
    return replaced


def add_embedding_gradients_in_place(model: nn.Module) -> None:
    """Let the gradient by each plain embedding's weight be added to its ``.grad`` row by row.

    Autograd makes a whole table for it and, where the head shares the weight, another one for the sum.
    For an engine that takes gradients from ``.grad`` once the backward pass is over.
    """
    for module in model.modules():
        if type(module) is nn.Embedding and module.weight.requires_grad and module.max_norm is None:
            module.__class__ = _AddingEmbedding


def _is_plain(module: nn.Module) -> bool:
    """A gated layer of SiLU without biases and adapters."""
    layers = [getattr(module, name) for name in ("gate_proj", "up_proj", "down_proj")]
    plain = all(type(layer) in (nn.Linear, FastLinear) and layer.bias is None for layer in layers)
    return plain and getattr(module.config, "hidden_act", None) == "silu"


def _fits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


class _AddingEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(input)
        looked_up: Tensor = _LookUp.apply(input, self.weight, self.padding_idx)  # type: ignore[no-untyped-call]
        return looked_up


class _LookUp(torch.autograd.Function):
    """Rows of an embedding; the padding token, if there is one, gets no gradient, as in torch's own."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_VD: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding_idx = weight_VD, padding_idx
        return nn.functional.embedding(ids, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        (ids,), weight_VD = ctx.saved_tensors, ctx.weight
        ids_N, grad_ND = ids.flatten(), grad.reshape(-1, grad.shape[-1])
        if ctx.padding_idx is not None:
            grad_ND = grad_ND.masked_fill((ids_N == ctx.padding_idx).unsqueeze(1), 0.0)
        if weight_VD.grad is None:
            weight_VD.grad = torch.zeros_like(weight_VD)
        weight_VD.grad.index_add_(0, ids_N, grad_ND.to(weight_VD.dtype))
        return None, None, None


class _FastNorm(nn.Module):
    weight: Tensor
    variance_epsilon: float
    feeds_products = False
    """Whether the output goes into matrix products and nowhere else, and is not written to (as heads' norms are)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not _fits(hidden_states, self.weight):
            unchanged: Tensor = super().forward(hidden_states)  # type: ignore[misc]
            return unchanged
        if not torch.is_grad_enabled():
            return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        normed: Tensor = _Norm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        if self.feeds_products and hidden_states.is_contiguous() and ops.fits(hidden_states, self.weight):
            note(normed, hidden_states, self.weight, self.variance_epsilon)
        return normed


class _Norm(torch.autograd.Function):
    """``x * rsqrt(mean(x^2) + eps) * weight`` over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        if ops.fits(x, weight_D):
            x = x.contiguous()
            out, scale = ops.norm(x, weight_D, eps, scales=True)
        else:
            mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
            scale = mean.add_(eps).rsqrt_()
            out = (x * scale).mul_(weight_D)
        ctx.save_for_backward(x, scale, weight_D)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, scale, weight_D = ctx.saved_tensors
        if ops.fits(x, weight_D):
            return *ops.norm_backward(x, scale, weight_D, grad), None
        width = x.shape[-1]
        straight = x * scale
        product = grad * straight
        rows = product.reshape(-1, width)
        by_weight_D = rows.sum(0) if ctx.needs_input_grad[1] else None
        # With y = straight * weight: dx = scale * (dy weight - straight * mean(dy weight straight)).
        mean = torch.mv(rows, weight_D).div_(-width).view(scale.shape)
        by_x = (grad * weight_D).addcmul_(straight, mean).mul_(scale)
        return by_x, by_weight_D, None


class _FastGated(nn.Module):
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
        if not _fits(x, weights[0]):
            unchanged: Tensor = super().forward(x)  # type: ignore[misc]
            return unchanged
        x_ND = x.reshape(-1, x.shape[-1])
        gated: Tensor = _Gated.apply(x_ND, *weights)  # type: ignore[no-untyped-call]
        return gated.view(x.shape)


class _Gated(torch.autograd.Function):
    """``(silu(x @ gate.T) * (x @ up.T)) @ down.T``."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, gate_ID: Tensor, up_ID: Tensor, down_DI: Tensor) -> Tensor:
        gate_NI, up_NI = products.linear(x_ND, gate_ID), products.linear(x_ND, up_ID)
        ctx.save_for_backward(x_ND, gate_NI, up_NI, gate_ID, up_ID, down_DI)
        if ops.fits(gate_NI):
            inner_NI = ops.silu_times(gate_NI, up_NI, torch.empty_like(gate_NI))
        else:
            inner_NI = nn.functional.silu(gate_NI).mul_(up_NI)
        return products.linear(inner_NI, down_DI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, gate_NI, up_NI, gate_ID, up_ID, down_DI = ctx.saved_tensors
        grad_ND = grad_ND.contiguous()
        by_inner_NI = products.linear(grad_ND, down_DI.t())
        if ops.fits(gate_NI):
            if graph_is_kept():
                gate_NI, up_NI = gate_NI.clone(), up_NI.clone()
            ops.silu_times_backward(gate_NI, up_NI, by_inner_NI)
            by_gate_NI, by_up_NI, inner_NI = gate_NI, up_NI, by_inner_NI
        else:
            open_NI = nn.functional.silu(gate_NI)
            by_up_NI = by_inner_NI * open_NI
            by_gate_NI = torch.ops.aten.silu_backward(by_inner_NI.mul_(up_NI), gate_NI)
            inner_NI = open_NI.mul_(up_NI)
        by_down = products.gradient_by_weight(grad_ND, inner_NI) if ctx.needs_input_grad[3] else None
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = products.linear(by_gate_NI, gate_ID.t())
            if products.onednn_pays():
                by_x = torch.ops.mkldnn._linear_pointwise.binary(by_up_NI, by_x, up_ID.t(), None, "add")
            else:
                by_x.addmm_(by_up_NI, up_ID)
        return (
            by_x,
            products.gradient_by_weight(by_gate_NI, x_ND) if ctx.needs_input_grad[1] else None,
            products.gradient_by_weight(by_up_NI, x_ND) if ctx.needs_input_grad[2] else None,
            by_down,
        )


class _FastAttention(nn.Module):
    head_dim: int
    scaling: float
    attention_dropout: float
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        packed_rows: PackedRows | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.training and self.attention_dropout > 0.0
        if packed_rows is None or dropout or not ops.fits(hidden_states, *position_embeddings):
            if packed_rows is not None:
                others["packed_rows"] = packed_rows
            unchanged: tuple[Tensor, Tensor | None] = super().forward(  # type: ignore[misc]
                hidden_states, position_embeddings, attention_mask, past_key_values, **others
            )
            return unchanged
        packed_rows.calls += 1
        x_ND = hidden_states[0]
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q_NHd, k_NRd, v_NRd = (project(x_ND).unflatten(1, (-1, self.head_dim)) for project in projections)
        q_norm, k_norm = getattr(self, "q_norm", None), getattr(self, "k_norm", None)
        if q_norm is not None and k_norm is not None:
            q_NHd, k_NRd = q_norm(q_NHd), k_norm(k_NRd)
        cosine, sine = (part[0].contiguous() for part in position_embeddings)
        mixed_NHd = attend(
            q_NHd,
            k_NRd,
            v_NRd,
            packed_rows.offsets,
            scale=self.scaling,
            window=self._window(),
            rotation=(cosine, sine),
        )
        return self.o_proj(mixed_NHd.flatten(1)).unsqueeze(0), None

    def _window(self) -> int | None:
        """Tokens that each one sees, None for all before it."""
        window: int | None = getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))
        return window


def _mixed(fast: type, families: tuple[type, ...]) -> dict[type, type]:
    return {family: type(f"{family.__name__}{fast.__name__}", (fast, family), {}) for family in families}


_FAST = {
    **_mixed(_FastAttention, (LlamaAttention, MistralAttention, Qwen2Attention, Qwen3Attention)),
    **_mixed(_FastNorm, (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)),
    **_mixed(_FastGated, (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP)),
}
