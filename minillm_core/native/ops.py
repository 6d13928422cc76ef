"""The kernels as functions of tensors on a CPU. They record no graph; what needs one wraps them.

Every function wants contiguous tensors of one of the number formats named, unless it says otherwise; callers ask
:func:`fits` first, which also says whether there are any kernels.

Axes: N tokens of all rows joined, D width, H query heads, R key-value heads, d width of a head, B decoding rows,
W columns of the cache, P positions, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minillm_core.native.library import load

_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
_BLOCK = 256


def fits(*tensors: Tensor, half: bool = False) -> bool:
    """Whether there are kernels for these tensors: on a CPU, all float32 or, where ``half``, all bfloat16."""
    first = tensors[0].dtype
    if first not in _SUFFIX or (first != torch.float32 and not half):
        return False
    return all(tensor.device.type == "cpu" and tensor.dtype == first for tensor in tensors) and load() is not None


def kernel(name: str, like: Tensor) -> Callable[..., Any]:
    """The kernel of this name for the number format of a tensor; :func:`fits` says whether there is one."""
    library = load()
    assert isinstance(library, ctypes.CDLL)
    function: Callable[..., Any] = getattr(library, f"{name}_{_SUFFIX[like.dtype]}")
    return function


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor lies, null for none."""
    return None if tensor is None else tensor.data_ptr()


def norm(x_ND: Tensor, weight_D: Tensor, eps: float, *, scales: bool = False) -> tuple[Tensor, Tensor | None]:
    """RMS norm, and the factor of each token (N,) in float32 where asked for; float32 or bfloat16."""
    x_ND = x_ND.contiguous()
    out_ND = torch.empty_like(x_ND)
    width = x_ND.shape[-1]
    tokens = x_ND.numel() // width
    scales_N = torch.empty(tokens) if scales else None
    kernel("norm", x_ND)(x_ND.data_ptr(), weight_D.data_ptr(), out_ND.data_ptr(), address(scales_N), tokens, width, eps)
    return out_ND, scales_N


def norm_backward(x_ND: Tensor, scales_N: Tensor, weight_D: Tensor, grad_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`norm` by ``x`` and by the weight; float32."""
    grad_ND = grad_ND.contiguous()
    by_x_ND, by_weight_D = torch.empty_like(x_ND), torch.empty_like(weight_D)
    width = weight_D.shape[0]
    kernel("norm_backward", x_ND)(
        x_ND.data_ptr(),
        scales_N.data_ptr(),
        weight_D.data_ptr(),
        grad_ND.data_ptr(),
        by_x_ND.data_ptr(),
        by_weight_D.data_ptr(),
        x_ND.numel() // width,
        width,
    )
    return by_x_ND, by_weight_D


def silu_times(gate_ND: Tensor, up_ND: Tensor, out_ND: Tensor) -> Tensor:
    """``silu(gate) * up`` into ``out``, which may be either of them; float32 or bfloat16."""
    kernel("silu_times", gate_ND)(gate_ND.data_ptr(), up_ND.data_ptr(), out_ND.data_ptr(), gate_ND.numel())
    return out_ND


def silu_times_backward(gate_ND: Tensor, up_ND: Tensor, grad_ND: Tensor) -> None:
    """Overwrites ``gate`` and ``up`` by the gradients by them, and ``grad``, that by the product, by the product."""
    kernel("silu_times_backward", gate_ND)(gate_ND.data_ptr(), up_ND.data_ptr(), grad_ND.data_ptr(), gate_ND.numel())


def rotate_halves(x_NHd: Tensor, cosine_Nd: Tensor, sine_Nd: Tensor, *, back: bool = False) -> None:
    """Rotary positions on the pairs (i, i + d/2), in place; ``back`` undoes it; float32.

    Tokens may have any stride; the heads of one are contiguous.
    """
    tokens, heads, width = x_NHd.shape
    kernel("rotate_halves", x_NHd)(
        x_NHd.data_ptr(),
        cosine_Nd.data_ptr(),
        sine_Nd.data_ptr(),
        tokens,
        heads,
        width,
        x_NHd.stride(0),
        -1.0 if back else 1.0,
    )


def rotate_pairs(
    qkv_NHd: Tensor,
    table_P: Tensor,
    positions_N: Tensor,
    q_norm_d: Tensor | None,
    k_norm_d: Tensor | None,
    eps: float,
    kv_heads: int,
) -> Tensor:
    """Queries, keys and values (N, H + 2R, d) in float32, the first two normed and rotated by complex numbers
    ``table[position]`` on the pairs (2i, 2i + 1). A float32 input is overwritten; float32 or bfloat16."""
    tokens, heads, width = qkv_NHd.shape
    out_NHd = qkv_NHd if qkv_NHd.dtype == torch.float32 else torch.empty(qkv_NHd.shape)
    kernel("rotate_pairs", qkv_NHd)(
        qkv_NHd.data_ptr(),
        table_P.data_ptr(),
        positions_N.data_ptr(),
        address(q_norm_d),
        address(k_norm_d),
        eps,
        tokens,
        heads - 2 * kv_heads,
        kv_heads,
        width,
        out_NHd.data_ptr(),
    )
    return out_NHd


def rows_attention(
    q_NHd: Tensor,
    k_NRd: Tensor,
    v_NRd: Tensor,
    offsets_B1: Tensor,
    *,
    scale: float,
    window: int | None,
    log_sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention within each row, (N, H, d), and what the backward pass needs (N, H) where asked for; float32.

    ``offsets``: where each row begins, and N. Tokens may have any stride; the heads of one are contiguous.
    """
    tokens, heads, width = q_NHd.shape
    out_NHd = torch.empty(tokens, heads, width)
    log_sums_NH = torch.empty(tokens, heads) if log_sums else None
    kernel("rows_attention", q_NHd)(
        q_NHd.data_ptr(),
        q_NHd.stride(0),
        k_NRd.data_ptr(),
        k_NRd.stride(0),
        v_NRd.data_ptr(),
        v_NRd.stride(0),
        offsets_B1.data_ptr(),
        offsets_B1.shape[0] - 1,
        heads,
        k_NRd.shape[1],
        width,
        window or 0,
        scale,
        out_NHd.data_ptr(),
        address(log_sums_NH),
    )
    return out_NHd, log_sums_NH


def rows_attention_backward(
    q_NHd: Tensor,
    k_NRd: Tensor,
    v_NRd: Tensor,
    out_NHd: Tensor,
    log_sums_NH: Tensor,
    grad_NHd: Tensor,
    offsets_B1: Tensor,
    *,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`rows_attention` by queries, keys and values, contiguous; float32."""
    tokens, heads, width = q_NHd.shape
    kv_heads = k_NRd.shape[1]
    by_q = torch.empty(tokens, heads, width)
    by_k, by_v = (torch.empty(tokens, kv_heads, width) for _ in range(2))
    kernel("rows_attention_backward", q_NHd)(
        q_NHd.data_ptr(),
        q_NHd.stride(0),
        k_NRd.data_ptr(),
        k_NRd.stride(0),
        v_NRd.data_ptr(),
        v_NRd.stride(0),
        out_NHd.data_ptr(),
        log_sums_NH.data_ptr(),
        grad_NHd.data_ptr(),
        offsets_B1.data_ptr(),
        offsets_B1.shape[0] - 1,
        heads,
        kv_heads,
        width,
        window or 0,
        scale,
        by_q.data_ptr(),
        by_k.data_ptr(),
        by_v.data_ptr(),
    )
    return by_q, by_k, by_v


def decode_attention(
    qkv_NHd: Tensor,
    table_P: Tensor,
    q_norm_d: Tensor | None,
    k_norm_d: Tensor | None,
    eps: float,
    padding_B1: Tensor,
    keys_BRWd: Tensor,
    values_BRWd: Tensor,
    *,
    column: int,
    window: int | None,
    offsets_B1: Tensor | None = None,
) -> Tensor:
    """New tokens of every row, (N, H * d) in the format of ``qkv``: norms and rotation as :func:`rotate_pairs`, their
    keys and values written to the cache, of that format too, from ``column`` on, attention in float32 from the row's
    first column to the token; float32 or bfloat16. ``offsets``: where the tokens of each row begin, and N; one token a
    row when left out."""
    tokens, all_heads, width = qkv_NHd.shape
    rows, kv_heads, columns = keys_BRWd.shape[:3]
    heads = all_heads - 2 * kv_heads
    out_ND = torch.empty(tokens, heads * width, dtype=qkv_NHd.dtype)
    assert keys_BRWd.dtype == values_BRWd.dtype == qkv_NHd.dtype
    kernel("decode_attention", qkv_NHd)(
        qkv_NHd.data_ptr(),
        address(offsets_B1),
        table_P.data_ptr(),
        address(q_norm_d),
        address(k_norm_d),
        eps,
        padding_B1.data_ptr(),
        keys_BRWd.data_ptr(),
        values_BRWd.data_ptr(),
        rows,
        heads,
        kv_heads,
        width,
        columns,
        column,
        window or 0,
        out_ND.data_ptr(),
    )
    return out_ND


def draw(logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A token (B,) from ``softmax(logits / temperature)`` by inversion at ``uniform`` (float64), and its
    log-probability (B,) in float32; float32 or bfloat16. Rows may have any stride."""
    rows, vocab = logits_BV.shape
    token_B, logp_B = torch.empty(rows, dtype=torch.long), torch.empty(rows)
    scratch = torch.empty(rows, -(-vocab // _BLOCK), dtype=torch.float64)
    uniform_B = uniform_B.contiguous()
    kernel("draw", logits_BV)(
        logits_BV.data_ptr(),
        logits_BV.stride(0),
        uniform_B.data_ptr(),
        rows,
        vocab,
        temperature,
        scratch.data_ptr(),
        token_B.data_ptr(),
        logp_B.data_ptr(),
    )
    return token_B, logp_B


def logp(logits_NV: Tensor, token_N: Tensor, temperature: float) -> Tensor:
    """Log-probability (N,), float32, of the tokens under ``softmax(logits / temperature)``; float32 or bfloat16.
    Rows may have any stride."""
    tokens, vocab = logits_NV.shape
    token_N, logp_N = token_N.contiguous(), torch.empty(tokens)
    kernel("logp", logits_NV)(
        logits_NV.data_ptr(),
        logits_NV.stride(0),
        token_N.data_ptr(),
        tokens,
        vocab,
        temperature,
        logp_N.data_ptr(),
    )
    return logp_N


def loss_sums(student_NV: Tensor, teacher_NV: Tensor | None, temperature: float) -> Tensor:
    """(N, 7), float32: with a = student / T less its largest, b likewise of the teacher, q and p their softmax:
    largest a before that, log sum exp a, E_q[a], largest b, log sum exp b, E_q[a - b], E_p[b - a]; float32."""
    tokens, vocab = student_NV.shape
    sums = torch.empty(tokens, 7)
    kernel("loss_sums", student_NV)(
        student_NV.data_ptr(), address(teacher_NV), tokens, vocab, temperature, sums.data_ptr()
    )
    return sums


def loss_gradient(
    student_NV: Tensor,
    teacher_NV: Tensor | None,
    temperature: float,
    sums: Tensor,
    by_token_N: Tensor,
    by_reverse_N: Tensor,
    by_forward_N: Tensor,
) -> None:
    """Overwrites the student's logits by the gradient by them: ``by_token`` times q, plus ``by_reverse`` times the
    gradient of KL(q || p), plus ``by_forward`` times that of KL(p || q), over T; ``sums`` from :func:`loss_sums`."""
    tokens, vocab = student_NV.shape
    kernel("loss_gradient", student_NV)(
        student_NV.data_ptr(),
        address(teacher_NV),
        tokens,
        vocab,
        temperature,
        sums.data_ptr(),
        by_token_N.data_ptr(),
        by_reverse_N.data_ptr(),
        by_forward_N.data_ptr(),
    )
