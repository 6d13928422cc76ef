"""The driver behind every loss on hidden states: a few tokens' logits at a time, their gradient at once.

:func:`sweep` walks over the tokens in chunks of C rows:

1. logits of student and teacher, (C, V) each, into two buffers that all chunks share;
2. softmax, the value of every term, and the gradient by the student's logits, written over the
   student's logits: row by row with the kernels of this project (:mod:`.fused_terms`), or with torch
   in tiles of R rows, small enough for the cache (:mod:`.tiles`);
3. that gradient times the head's weight gives the gradient by the hidden states, and times the
   hidden states adds to the gradient by the weight, in float32.

So the backward pass only multiplies what is ready, nothing is computed twice, and the memory
beyond inputs and gradients is the two buffers and the tiles, whatever N is: the chunk is chosen
so that the buffers take about 72 MB on a CPU and 1 GB on an accelerator.

Axes: N tokens that count, of all rows joined; D hidden width (of the model named); V vocabulary;
C tokens of a chunk; R tokens of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm_core.objectives import fused_terms
from minillm_core.objectives.products import buffer, multiply_into
from minillm_core.objectives.terms import DivergenceTerm, Head, Swept, TokenTerm
from minillm_core.objectives.tiles import Tile, terms_of_tile

_CPU_CHUNK_BYTES = 72 * 2**20
_ACCELERATOR_CHUNK_BYTES = 2**30
_PANEL_TOKENS = 32
"""Tokens that the kernel behind the logits takes side by side where the processor's vectors are widest."""
_CPU_TILE_BYTES = 8 * 2**20
_ACCELERATOR_TILE_BYTES = 128 * 2**20


def _chunk_tokens(given: int | None, tokens: int, width: int, device: torch.device) -> int:
    if given is not None:
        if given < 1:
            raise ValueError(f"chunk_tokens must be at least 1, not {given}")
        return min(given, max(1, tokens))
    budget = _CPU_CHUNK_BYTES if device.type == "cpu" else _ACCELERATOR_CHUNK_BYTES
    rows = max(16, budget // (2 * 4 * width) // 16 * 16)
    # Chunks of one size, since a short last one would waste the product's efficiency, and of whole panels.
    chunks = -(-max(1, tokens) // rows)
    return min(max(1, tokens), -(-max(1, tokens) // (chunks * _PANEL_TOKENS)) * _PANEL_TOKENS)


class _Projector:
    """One head over the chunks of one sweep: its weight cast once, its logits in one buffer."""

    def __init__(self, name: str, hidden_ND: Tensor, head: Head, chunk: int) -> None:
        self.width = head.width
        self._name, self._hidden_ND, self._chunk = name, hidden_ND.detach(), chunk
        self.dtype = head.precision
        self.weight_VD = head.weight_VD.detach()[: self.width].to(self.dtype)
        self._bias_V = None if head.bias_V is None else head.bias_V.detach()[: self.width].to(self.dtype)

    def hidden(self, rows: slice) -> Tensor:
        """Hidden states of a chunk, in the type of the products."""
        return self._hidden_ND[rows].to(self.dtype)

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """(C, V) before the softcap, in this head's buffer."""
        logits_CV = buffer(self._name, self._chunk, self.width, dtype=self.dtype, device=hidden_CD.device)[
            : hidden_CD.shape[0]
        ]
        multiply_into(logits_CV, hidden_CD, self.weight_VD.t())
        return logits_CV if self._bias_V is None else logits_CV.add_(self._bias_V)


@torch.no_grad()
def sweep(
    hidden_ND: Tensor,
    head: Head,
    *,
    token_term: TokenTerm | None = None,
    divergence_term: DivergenceTerm | None = None,
    chunk_tokens: int | None = None,
    entropy: bool = False,
    needs: tuple[bool, bool, bool] = (False, False, False),
) -> Swept:
    """Every term and, where needed, the gradients by hidden states, weight and bias, in one pass."""
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return _sweep(hidden_ND, head, token_term, divergence_term, chunk_tokens, entropy, needs)


def _sweep(
    hidden_ND: Tensor,
    head: Head,
    token_term: TokenTerm | None,
    divergence_term: DivergenceTerm | None,
    chunk_tokens: int | None,
    entropy: bool,
    needs: tuple[bool, bool, bool],
) -> Swept:
    tokens, device = hidden_ND.shape[0], hidden_ND.device
    accumulate = torch.float64 if torch.float64 in (hidden_ND.dtype, head.weight_VD.dtype) else torch.float32
    chunk = _chunk_tokens(chunk_tokens, tokens, head.width, device)
    student = _Projector("student", hidden_ND, head, chunk)
    teacher = None
    if divergence_term is not None:
        teacher = _Projector("teacher", divergence_term.hidden_ND, divergence_term.head, chunk)
        if student.width != teacher.width:
            raise ValueError(
                f"the student's head has {student.width} tokens and the teacher's {teacher.width}: "
                "set vocab of both to the vocabulary they share"
            )
        _check_tokens("teacher hidden states", divergence_term.hidden_ND, tokens)
    if token_term is not None:
        _check_tokens("targets", token_term.targets_N, tokens)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=accumulate, device=device)

    result = Swept(
        logp_N=zeros(tokens if token_term is not None else 0),
        token_losses_N=zeros(tokens if token_term is not None else 0),
        divergences_N=zeros(tokens if divergence_term is not None else 0),
        entropies_N=zeros(tokens if entropy else 0),
        gradients=(
            torch.empty(hidden_ND.shape, dtype=accumulate, device=device) if needs[0] else None,
            _weight_gradient(head, tokens, accumulate) if needs[1] else None,
            zeros(head.weight_VD.shape[0]) if needs[2] else None,
        ),
    )
    kernels = fused_terms.covers(head, token_term, divergence_term, student.dtype, accumulate, device)
    tile_bytes = _CPU_TILE_BYTES if device.type == "cpu" else _ACCELERATOR_TILE_BYTES
    tile_rows = chunk if kernels else max(1, min(chunk, tile_bytes // (student.width * accumulate.itemsize)))
    tile = None if kernels else Tile(tile_rows, student.width, dtype=accumulate, device=device)
    hidden_grad, weight_grad, bias_grad = result.gradients
    for start in range(0, tokens, chunk):
        rows = slice(start, min(start + chunk, tokens))
        hidden_CD = student.hidden(rows)
        logits_CV = student.logits(hidden_CD)
        teacher_CV = None if teacher is None else teacher.logits(teacher.hidden(rows))
        for first in range(0, rows.stop - rows.start, tile_rows):
            inside = slice(first, min(first + tile_rows, rows.stop - rows.start))
            place = slice(start + inside.start, start + inside.stop)
            teacher_RV = None if teacher_CV is None else teacher_CV[inside]
            asked = {"entropy": entropy, "gradient": any(needs)}
            if tile is None:
                fused_terms.terms_of_rows(
                    logits_CV[inside], teacher_RV, token_term, divergence_term, result, place, **asked
                )
            else:
                terms_of_tile(
                    tile, logits_CV[inside], teacher_RV, head, token_term, divergence_term, result, place, **asked
                )
        if hidden_grad is not None:
            multiply_into(hidden_grad[rows], logits_CV, student.weight_VD)
        if weight_grad is not None:
            multiply_into(weight_grad[: student.width], logits_CV.t(), hidden_CD, add=start > 0)
        if bias_grad is not None:
            bias_grad[: student.width].add_(logits_CV.sum(0, dtype=accumulate))
    return result


def _weight_gradient(head: Head, tokens: int, dtype: torch.dtype) -> Tensor:
    """Memory for the gradient by the weight: the first chunk writes it, padding rows stay zero."""
    gradient_VD = torch.empty(head.weight_VD.shape, dtype=dtype, device=head.weight_VD.device)
    gradient_VD[0 if tokens == 0 else head.width :].zero_()
    return gradient_VD


def _check_tokens(what: str, tensor: Tensor, tokens: int) -> None:
    if tensor.shape[0] != tokens:
        raise ValueError(f"{tensor.shape[0]} {what} for {tokens} hidden states")


def graph_is_kept() -> bool:
    """Whether the graph that is being walked may be walked again: what it holds must then stay as it is.

    True where torch does not say.
    """
    return bool(getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)())


class _Preformed(torch.autograd.Function):
    """Hangs gradients that are already there onto the graph of the inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        total: Tensor,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
        adds_gradient: bool,
    ) -> Tensor:
        ctx.gradients = gradients
        ctx.weight_VD = weight_VD if adds_gradient else None
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss was differentiated before: use retain_graph=True to do so twice")
        # A head's gradient takes hundreds of megabytes: it is scaled where it lies unless the graph
        # is to be used again.
        kept = graph_is_kept()
        gradients = ctx.gradients
        scaled: list[Tensor | None] = []
        for gradient, dtype in zip(gradients, ctx.dtypes, strict=True):
            if gradient is None:
                scaled.append(None)
            else:
                scaled.append((gradient * grad_output if kept else gradient.mul_(grad_output)).to(dtype))
        if not kept:
            ctx.gradients = None
        if ctx.weight_VD is not None and scaled[1] is not None:
            _add_gradient(ctx.weight_VD, scaled[1])
            scaled[1] = None
        return None, *scaled, None, None


def _add_gradient(leaf: Tensor, gradient: Tensor) -> None:
    if leaf.grad is None:
        leaf.grad = gradient
    else:
        leaf.grad.add_(gradient)


def gradients_needed(hidden_ND: Tensor, head: Head) -> tuple[bool, bool, bool]:
    """Whether hidden states, weight and bias take part in the graph that is being recorded."""
    if not torch.is_grad_enabled():
        return False, False, False
    bias = head.bias_V is not None and head.bias_V.requires_grad
    return hidden_ND.requires_grad, head.weight_VD.requires_grad, bias


def attach(total: Tensor, hidden_ND: Tensor, head: Head, result: Swept) -> Tensor:
    """``total`` with the gradients of the sweep behind it; as it is where none was needed."""
    if all(gradient is None for gradient in result.gradients):
        return total
    attached: Tensor = _Preformed.apply(  # type: ignore[no-untyped-call]
        total, hidden_ND, head.weight_VD, head.bias_V, result.gradients, head.adds_gradient
    )
    return attached
