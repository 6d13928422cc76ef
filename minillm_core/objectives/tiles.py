"""The terms of a loss and their gradient by the logits, with torch: any divergence, softcaps, any device.

A few tokens' logits at a time, in four pieces of memory that all tiles share.

Axes: N tokens that count, of all rows joined; V vocabulary; R tokens of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm_core.objectives.divergences import value_and_gradient
from minillm_core.objectives.products import buffer
from minillm_core.objectives.terms import DivergenceTerm, Head, Swept, TokenTerm


class Tile:
    """Four (R, V) pieces of memory and what is done to the logits of R tokens in them."""

    def __init__(self, rows: int, width: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.memory = [buffer(f"tile{n}", rows, width, dtype=dtype, device=device) for n in range(4)]
        self.dtype = dtype

    def log_softmax(self, logits_RV: Tensor, head: Head, temperature: float, out_RV: Tensor, spare_RV: Tensor) -> None:
        """Log-softmax of softcapped logits over the temperature; the logits stay as they are."""
        if logits_RV.dtype == self.dtype and head.softcap is None and temperature == 1.0:
            torch.log_softmax(logits_RV, dim=-1, out=out_RV)
            return
        spare_RV.copy_(logits_RV)
        if head.softcap is not None:
            spare_RV.div_(head.softcap).tanh_().mul_(head.softcap)
        if temperature != 1.0:
            spare_RV.div_(temperature)
        torch.log_softmax(spare_RV, dim=-1, out=out_RV)


def terms_of_tile(
    tile: Tile,
    logits_RV: Tensor,
    teacher_RV: Tensor | None,
    head: Head,
    token_term: TokenTerm | None,
    divergence_term: DivergenceTerm | None,
    result: Swept,
    place: slice,
    *,
    entropy: bool,
    gradient: bool,
) -> None:
    """Values of the tokens at ``place``; the gradient by the raw logits replaces ``logits_RV``."""
    logq, q, logp, spare = (memory[: logits_RV.shape[0]] for memory in tile.memory)
    moves = gradient and divergence_term is not None and divergence_term.coefficient != 0.0
    token_gradient: Tensor | None = None
    if token_term is not None:
        tile.log_softmax(logits_RV, head, token_term.temperature, logq, spare)
        targets_R1 = token_term.targets_N[place].unsqueeze(-1)
        logp_of_target_R = logq.gather(-1, targets_R1).squeeze(-1)
        losses_R, slopes_R = token_term.evaluate(logp_of_target_R, place)
        result.logp_N[place] = logp_of_target_R
        result.token_losses_N[place] = losses_R
        slopes_R1 = slopes_R.to(q.dtype).unsqueeze(-1) / token_term.temperature
    if not gradient and divergence_term is None and not entropy:
        return
    if token_term is None or (divergence_term is not None and divergence_term.temperature != token_term.temperature):
        if token_term is not None and gradient:
            token_gradient = logq.exp().mul_(-slopes_R1)
        assert divergence_term is not None
        tile.log_softmax(logits_RV, head, divergence_term.temperature, logq, spare)
    torch.exp(logq, out=q)
    if entropy:
        result.entropies_N[place] = torch.mul(q, logq, out=spare).sum(-1).neg_()
    if divergence_term is not None and teacher_RV is not None:
        term = divergence_term
        tile.log_softmax(teacher_RV, term.head, term.temperature, logp, spare)
        result.divergences_N[place] = value_and_gradient(
            term.kind, logq, logp, q, spare, settings=term.settings, gradient=moves
        )
    if not gradient:
        return
    # From here on logq holds the divergence's gradient, and q is free once it has been used.
    if token_term is not None and token_gradient is None:
        token_gradient = q.mul_(-slopes_R1)
    if divergence_term is not None and moves:
        logq.mul_(divergence_term.coefficient / divergence_term.temperature)
        if divergence_term.weights_N is not None:
            logq.mul_(divergence_term.weights_N[place].to(logq.dtype).unsqueeze(-1))
        total = logq if token_gradient is None else logq.add_(token_gradient)
    else:
        total = logq.zero_() if token_gradient is None else token_gradient
    if token_term is not None:
        total.scatter_add_(-1, targets_R1, slopes_R1)
    if head.softcap is not None:
        # d (cap tanh(x / cap)) / dx = 1 - tanh^2
        spare.copy_(logits_RV).div_(head.softcap)
        total.mul_(spare.tanh_().square_().neg_().add_(1.0))
    logits_RV.copy_(total)
