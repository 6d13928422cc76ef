"""Matrix products into memory that is already there, and that memory.

Two things make the head of a language model slow on a CPU beside the arithmetic: torch sends
float32 products to MKL, which on processors with AVX-512 that are not Intel's can run at half the
rate of oneDNN (docs/performance.md); and every temporary of more than 32 MB is returned to the system when freed
and faulted in again, page by page, at its next use. So products go to the library that is faster on
this processor, to oneDNN in blocks of a few megabytes, which the allocator keeps, and the results
land in buffers that outlive the call.

Axes: M, K, N of a product (M, K) times (K, N).
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minillm_core.native import ops, panels

_FEW_TOKENS, _MANY_OUTPUTS = 512, 8192
_ANY_TOKENS = 64
_FINEST_STEP, _STEPS_BITS = 16, 5
_CPU_BLOCK_BYTES = 8 * 2**20
_ACCELERATOR_BLOCK_BYTES = 256 * 2**20


@functools.cache
def onednn_available() -> bool:
    """Whether the operator behind oneDNN's linear layer is there (torch names it privately)."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    probe = torch.eye(2)
    try:
        return bool(torch.equal(torch.ops.mkldnn._linear_pointwise(probe, probe, None, "none", [], ""), probe))
    except RuntimeError:
        return False


@functools.cache
def onednn_pays() -> bool:
    """Whether large float32 products go to oneDNN: there is AVX-512, and no processor of MKL's own maker.

    The processor decides, not a measurement, so that a run computes the same when it is resumed.
    """
    return kernels_pay() and onednn_available()


@functools.cache
def kernels_pay() -> bool:
    """Whether this project's kernels beat both libraries at sums over tokens, and at logits: AVX-512 not of Intel's."""
    return _has_avx512() and not _made_by_intel()


@functools.cache
def bfloat16_pays() -> bool:
    """Whether this processor multiplies bfloat16 itself."""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", _processor(), re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags[1].split())


@functools.cache
def pairs_pay() -> bool:
    """Whether fixed weights in bfloat16 go to this project's kernel for pairs of them: oneDNN's is as fast with many
    tokens and slower with eight, and makes code for each number of tokens."""
    return _has_avx512() and bfloat16_pays()


@functools.cache
def panels_pay() -> bool:
    """Whether fixed float32 weights go to this project's kernel for whole rows too, and not only for few tokens."""
    return _has_avx512()


def _has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _made_by_intel() -> bool:
    return "GenuineIntel" in _processor()


@functools.cache
def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def padded_tokens(tokens: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many tokens to compute so that few numbers of tokens occur; more than a handful of them, on a CPU.

    Multiples of 16, and of a power of two that is a 32nd to a 64th of more than a thousand.

    oneDNN makes code for each shape that it meets and holds about half a megabyte of it, some for ever: a step whose
    rows have other lengths than the last one's would cost 14 MB more each time (docs/performance.md).
    """
    makes_code = dtype in (torch.bfloat16, torch.float16) or (dtype == torch.float32 and onednn_pays())
    if device.type != "cpu" or not makes_code or tokens <= _ANY_TOKENS:
        return tokens
    step = max(_FINEST_STEP, 1 << (tokens.bit_length() - 1 - _STEPS_BITS))
    return -(-tokens // step) * step


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, (N, O), by the faster library; operands strided in any way, without gradient."""
    if bias_O is None and _goes_by_rows(x_NI, weight_OI):
        return panels.product_by_rows(x_NI, weight_OI, torch.empty(x_NI.shape[0], weight_OI.shape[0]))
    fits = x_NI.device.type == "cpu" and x_NI.dtype == torch.float32 and x_NI.numel() and weight_OI.numel()
    if fits and onednn_pays():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
        return product
    return torch.nn.functional.linear(x_NI, weight_OI, bias_O)


def gradient_by_weight(grad_NO: Tensor, x_NI: Tensor) -> Tensor:
    """``grad.T @ x``, (O, I): the gradient of ``x @ weight.T`` by the weight, by the faster way; without gradient."""
    out_OI = torch.empty(grad_NO.shape[1], x_NI.shape[1], dtype=x_NI.dtype, device=x_NI.device)
    if _sums_over_tokens(grad_NO.t(), x_NI, out_OI):
        return panels.gradient_by_weight(grad_NO, x_NI, out_OI)
    return linear(grad_NO.t(), x_NI.t())


def _sums_over_tokens(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor) -> bool:
    """Whether the kernel for products whose first operand is a transposed view is the fastest."""
    laid_out = a_MK.stride(0) == b_KN.stride(1) == out_MN.stride(1) == 1 and bool(a_MK.numel() and b_KN.numel())
    return laid_out and kernels_pay() and ops.fits(a_MK, b_KN, out_MN)


def _goes_by_rows(x_NI: Tensor, weight_OI: Tensor) -> bool:
    """Whether the kernel for few tokens and very many outputs (logits) is the fastest."""
    few_tokens = _FEW_TOKENS // 2 if onednn_pays() else _FEW_TOKENS
    few = 0 < x_NI.shape[0] <= few_tokens and weight_OI.shape[0] >= _MANY_OUTPUTS
    laid_out = few and x_NI.stride(1) == weight_OI.stride(1) == 1
    recorded = torch.is_grad_enabled() and (x_NI.requires_grad or weight_OI.requires_grad)
    return laid_out and not recorded and (kernels_pay() or not _has_avx512()) and ops.fits(x_NI, weight_OI)


def _blocks(out_MN: Tensor) -> Iterator[tuple[slice, slice]]:
    """The longer side of the result in pieces of some megabytes."""
    rows, columns = out_MN.shape
    longer, shorter = max(rows, columns), min(rows, columns)
    limit = _CPU_BLOCK_BYTES if out_MN.device.type == "cpu" else _ACCELERATOR_BLOCK_BYTES
    size = max(256, limit // (out_MN.element_size() * max(1, shorter)))
    for start in range(0, longer, size):
        piece = slice(start, min(start + size, longer))
        yield (piece, slice(None)) if rows >= columns else (slice(None), piece)


def multiply_into(out_MN: Tensor, a_MK: Tensor, b_KN: Tensor, *, add: bool = False) -> None:
    """``out = a @ b``, or ``out += a @ b``; the result is cast to the type of ``out``.

    ``a`` and ``b`` have one type and may be transposed or cut views.
    """
    if _sums_over_tokens(a_MK, b_KN, out_MN):
        panels.gradient_by_weight(a_MK.t(), b_KN, out_MN, add=add)
        return
    if not add and out_MN.dtype == a_MK.dtype and out_MN.stride(1) == 1 and _goes_by_rows(a_MK, b_KN.t()):
        panels.product_by_rows(a_MK, b_KN.t(), out_MN)
        return
    plain = a_MK.device.type != "cpu" or a_MK.dtype == torch.float64 or not onednn_pays()
    if plain and out_MN.dtype == a_MK.dtype:
        if add:
            out_MN.addmm_(a_MK, b_KN)
        else:
            torch.mm(a_MK, b_KN, out=out_MN)
        return
    for rows, columns in _blocks(out_MN):
        product = linear(a_MK[rows], b_KN[:, columns].t())
        target = out_MN[rows, columns]
        if add:
            target.add_(product)
        else:
            target.copy_(product)


class _Memory(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}


_MEMORY = _Memory()


def buffer(name: str, rows: int, columns: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An undefined (rows, columns) tensor that the next call of the same name on this thread overwrites.

    On a CPU it stays allocated between calls; an accelerator's own allocator does that better.
    """
    size = rows * columns
    if device.type != "cpu":
        return torch.empty((rows, columns), dtype=dtype, device=device)
    held = _MEMORY.buffers.get((name, dtype))
    if held is None or held.numel() < size:
        _MEMORY.buffers.pop((name, dtype), None)
        # An inference tensor could not be written to outside of inference mode.
        with torch.inference_mode(False):
            held = torch.empty(size, dtype=dtype)
        _MEMORY.buffers[(name, dtype)] = held
    return held[:size].view(rows, columns)
