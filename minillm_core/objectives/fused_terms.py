"""The terms of a loss and their gradient by the logits with this project's kernels: float32 on a CPU.

Two passes over the logits of each token while they are in the cache, where torch takes ten over tiles of many.

Axes: N tokens that count, of all rows joined; V vocabulary; R some of the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm_core.native import ops
from minillm_core.objectives.terms import DivergenceTerm, Head, Swept, TokenTerm

_KINDS = ("forward_kl", "reverse_kl")


def covers(
    head: Head,
    token_term: TokenTerm | None,
    divergence_term: DivergenceTerm | None,
    product_dtype: torch.dtype,
    accumulate: torch.dtype,
    device: torch.device,
) -> bool:
    """Whether there are kernels for these terms: no softcap, one temperature, the plain divergences, float32."""
    if (product_dtype, accumulate, device.type) != (torch.float32, torch.float32, "cpu"):
        return False
    if head.softcap is not None or not ops.fits(torch.empty(0)):
        return False
    if divergence_term is None:
        return True
    teacher = divergence_term.head
    plain = divergence_term.kind in _KINDS and teacher.softcap is None and teacher.precision == torch.float32
    return plain and (token_term is None or token_term.temperature == divergence_term.temperature)


def terms_of_rows(
    logits_RV: Tensor,
    teacher_RV: Tensor | None,
    token_term: TokenTerm | None,
    divergence_term: DivergenceTerm | None,
    result: Swept,
    place: slice,
    *,
    entropy: bool,
    gradient: bool,
) -> None:
    """Values of the tokens at ``place``; the gradient by the raw logits replaces ``logits_RV``."""
    term = token_term or divergence_term
    temperature = 1.0 if term is None else term.temperature
    sums = ops.loss_sums(logits_RV, teacher_RV, temperature)
    largest, log_mass, own, _, teacher_log_mass, reverse, forward = sums.unbind(1)
    nothing_R = torch.zeros(logits_RV.shape[0])
    by_token_R = by_reverse_R = by_forward_R = nothing_R
    if token_term is not None:
        targets_R1 = token_term.targets_N[place].unsqueeze(-1)
        logp_R = logits_RV.gather(-1, targets_R1).squeeze(-1).div_(temperature).sub_(largest).sub_(log_mass)
        losses_R, slopes_R = token_term.evaluate(logp_R, place)
        result.logp_N[place] = logp_R
        result.token_losses_N[place] = losses_R
        slopes_R = slopes_R.float()
        by_token_R = slopes_R.neg()
    if entropy:
        result.entropies_N[place] = log_mass - own
    if divergence_term is not None:
        gap = teacher_log_mass - log_mass
        is_reverse = divergence_term.kind == "reverse_kl"
        result.divergences_N[place] = reverse + gap if is_reverse else forward - gap
        factor_R = torch.full_like(nothing_R, divergence_term.coefficient)
        if divergence_term.weights_N is not None:
            factor_R.mul_(divergence_term.weights_N[place])
        by_reverse_R, by_forward_R = (factor_R, nothing_R) if is_reverse else (nothing_R, factor_R)
    if not gradient:
        return
    moved = divergence_term is not None and divergence_term.coefficient != 0.0
    ops.loss_gradient(
        logits_RV, teacher_RV if moved else None, temperature, sums, by_token_R, by_reverse_R, by_forward_R
    )
    if token_term is not None:
        logits_RV.scatter_add_(-1, targets_R1, slopes_R.div(temperature).unsqueeze(-1))
