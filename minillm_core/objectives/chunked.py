"""Losses straight from hidden states, without ever holding the logits of all tokens.

With V = 151,936 the float32 logits of 16,384 tokens take 10 GB, and a plain loss holds several
tensors of that size. The functions here differ in their terms only; how the tokens are walked
through, and why that is also the faster way, is told in :mod:`minillm_core.objectives.sweep`.

Every loss is a sum over its tokens; the caller divides by the token count of the global batch.
Gradients reach the student's hidden states, head weight and bias, and nothing of the teacher.
Where nothing needs a gradient none is formed. N may be 0: the loss is then 0 with a graph, so that
a rank without tokens takes part in the backward pass.

Axes: N tokens that count, of all rows joined; D hidden width (of the model named); V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minillm_core.objectives.divergences import Settings, check_kind
from minillm_core.objectives.policy_gradient import surrogate_terms
from minillm_core.objectives.sweep import attach, gradients_needed, sweep
from minillm_core.objectives.terms import DivergenceTerm, Head, TokenTerm, as_head

__all__ = [
    "CrossEntropyLoss",
    "Head",
    "PolicyLoss",
    "cross_entropy_from_hidden",
    "divergence_from_hidden",
    "logp_from_hidden",
    "policy_loss_from_hidden",
    "token_divergences_from_hidden",
]


@dataclass(frozen=True)
class PolicyLoss:
    """The MiniLLM loss of some tokens. All but ``total`` are without graph."""

    total: Tensor
    """Long part plus single-step part, as far as they are switched on: what to differentiate."""
    long: Tensor
    """Sum of the clipped surrogate; 0 where the long part is off."""
    single_step: Tensor
    """Weighted sum of the reverse KL; 0 where the single-step part is off."""
    clipped: Tensor
    """Number of tokens that the clip holds."""
    reverse_kl: Tensor
    """Sum of KL(q || p), unweighted, also where the single-step part is off; 0 without a teacher."""
    entropy: Tensor
    """Sum of the student's entropy, in nats."""
    logp_N: Tensor
    """log q of each target, float32."""


@dataclass(frozen=True)
class CrossEntropyLoss:
    """Cross-entropy and divergence of some tokens. All but ``total`` are without graph."""

    total: Tensor
    """Both terms with their weights: what to differentiate."""
    cross_entropy: Tensor
    """Sum of -log q of the targets, at temperature 1, before its weight; 0 where that is 0."""
    divergence: Tensor
    """Sum of the divergence before its weight; 0 where there is none."""
    logp_N: Tensor
    """log q of each target at temperature 1; empty where the cross-entropy has weight 0."""


def divergence_from_hidden(
    kind: str,
    student_hidden_ND: Tensor,
    student_head: Head | Tensor,
    teacher_hidden_ND: Tensor,
    teacher_head: Head | Tensor,
    *,
    chunk_tokens: int | None = None,
    temperature: float = 1.0,
    weights_N: Tensor | None = None,
    **params: float,
) -> Tensor:
    """:func:`~minillm_core.objectives.divergences.divergence` summed over the tokens.

    Args:
        kind: one of :data:`~minillm_core.objectives.divergences.KINDS`.
        student_hidden_ND: final hidden states of the student at the positions that predict the tokens.
        student_head: head of the student; a tensor is the weight (V, D) of a head that is a product alone.
        teacher_hidden_ND: those of the teacher, of its own width.
        teacher_head: head of the teacher, over the same vocabulary.
        chunk_tokens: tokens whose logits exist at one time; by memory when left out.
        temperature: divides the logits of both.
        weights_N: factor of each token, a constant for the gradient.
        params: ``beta``, ``alpha``, ``head_mass`` of the kinds that have them.

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        ValueError: unknown kind, vocabularies or token counts that differ, a setting out of range.
    """
    check_kind(kind)
    student_head, teacher_head = as_head(student_head), as_head(teacher_head)
    weights_N = None if weights_N is None else weights_N.detach()
    term = DivergenceTerm(
        kind, teacher_hidden_ND, teacher_head, Settings(**params), temperature=temperature, weights_N=weights_N
    )
    needs = gradients_needed(student_hidden_ND, student_head)
    swept = sweep(student_hidden_ND, student_head, divergence_term=term, chunk_tokens=chunk_tokens, needs=needs)
    return attach(_weighted_sum(swept.divergences_N, weights_N), student_hidden_ND, student_head, swept)


def token_divergences_from_hidden(
    kind: str,
    student_hidden_ND: Tensor,
    student_head: Head | Tensor,
    teacher_hidden_ND: Tensor,
    teacher_head: Head | Tensor,
    *,
    chunk_tokens: int | None = None,
    temperature: float = 1.0,
    **params: float,
) -> Tensor:
    """The divergence of each token, (N,), without gradient; arguments as :func:`divergence_from_hidden`."""
    check_kind(kind)
    term = DivergenceTerm(kind, teacher_hidden_ND, as_head(teacher_head), Settings(**params), temperature=temperature)
    return sweep(
        student_hidden_ND, as_head(student_head), divergence_term=term, chunk_tokens=chunk_tokens
    ).divergences_N


def policy_loss_from_hidden(
    student_hidden_ND: Tensor,
    student_head: Head | Tensor,
    targets_N: Tensor,
    *,
    teacher_hidden_ND: Tensor | None,
    teacher_head: Head | Tensor | None,
    old_logp_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    cliprange: float | None,
    clip_sign: Literal["signed", "unsigned"] = "signed",
    single_step: bool = True,
    single_step_weights_N: Tensor | None = None,
    long_part: bool = True,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> PolicyLoss:
    """The MiniLLM loss (paper, equation 7) of both parts in one pass over the logits.

    Args:
        student_hidden_ND: final hidden states of the student at the positions that predict the tokens.
        student_head: head of the student.
        targets_N: ids of the sampled tokens.
        teacher_hidden_ND: hidden states of the teacher at the same positions, kept from the rollout;
            None, with ``teacher_head`` None, computes the long part alone.
        teacher_head: head of the teacher, over the same vocabulary.
        old_logp_N: log q of the targets under the weights that sampled.
        advantages_N: rewards to go, whitened or not.
        weights_N: importance weights, which multiply the ratio inside the clip.
        cliprange: half width of the clip around 1; None for no clip.
        clip_sign: see :func:`~minillm_core.objectives.policy_gradient.surrogate_terms`.
        single_step: whether the reverse KL at each position is part of the loss.
        single_step_weights_N: its factor at each token; None for 1.
        long_part: whether the clipped surrogate is part of the loss.
        temperature: divides the logits of both.
        chunk_tokens: tokens whose logits exist at one time; by memory when left out.

    Raises:
        ValueError: the single-step part without a teacher, vocabularies or token counts that differ.
    """
    if (teacher_hidden_ND is None) != (teacher_head is None):
        raise ValueError("give teacher_hidden_ND and teacher_head together")
    student_head = as_head(student_head)
    if single_step and teacher_head is None:
        raise ValueError("the single-step part needs the teacher's hidden states and head")
    held_N = torch.zeros(targets_N.shape, dtype=torch.bool, device=student_hidden_ND.device)

    def surrogate(logp_R: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        losses_R, held_R = surrogate_terms(
            logp_R,
            old_logp_N[place],
            advantages_N[place],
            weights_N[place],
            cliprange=cliprange,
            clip_sign=clip_sign,
        )
        held_N[place] = held_R
        if not long_part:
            losses_R = torch.zeros_like(losses_R)
        return losses_R, losses_R.masked_fill(held_R, 0.0)

    divergence_term = None
    if teacher_hidden_ND is not None and teacher_head is not None:
        divergence_term = DivergenceTerm(
            "reverse_kl",
            teacher_hidden_ND,
            as_head(teacher_head),
            temperature=temperature,
            weights_N=None if single_step_weights_N is None else single_step_weights_N.detach(),
            coefficient=1.0 if single_step else 0.0,
        )
    swept = sweep(
        student_hidden_ND,
        student_head,
        token_term=TokenTerm(targets_N, surrogate, temperature),
        divergence_term=divergence_term,
        chunk_tokens=chunk_tokens,
        entropy=True,
        needs=gradients_needed(student_hidden_ND, student_head),
    )
    long = swept.token_losses_N.sum()
    single = _weighted_sum(swept.divergences_N, single_step_weights_N) if single_step else torch.zeros_like(long)
    return PolicyLoss(
        total=attach(long + single, student_hidden_ND, student_head, swept),
        long=long,
        single_step=single,
        clipped=held_N.sum(),
        reverse_kl=swept.divergences_N.sum(),
        entropy=swept.entropies_N.sum(),
        logp_N=swept.logp_N,
    )


def cross_entropy_from_hidden(
    hidden_ND: Tensor,
    head: Head | Tensor,
    targets_N: Tensor,
    *,
    cross_entropy_weight: float = 1.0,
    divergence: str | None = None,
    divergence_weight: float = 0.0,
    teacher_hidden_ND: Tensor | None = None,
    teacher_head: Head | Tensor | None = None,
    weights_N: Tensor | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    **params: float,
) -> CrossEntropyLoss:
    """``cross_entropy_weight * CE + divergence_weight * D`` in one pass: sft, kd, seqkd, gkd, corpus loss.

    Args:
        hidden_ND: final hidden states of the student at the positions that predict the tokens.
        head: head of the student.
        targets_N: ids of the tokens to predict; used where ``cross_entropy_weight`` is not 0.
        cross_entropy_weight: factor of the cross-entropy, which is always taken at temperature 1.
        divergence: a kind of :data:`~minillm_core.objectives.divergences.KINDS`, or None.
        divergence_weight: factor of the divergence.
        teacher_hidden_ND: hidden states of the teacher at the same positions.
        teacher_head: head of the teacher, over the same vocabulary.
        weights_N: factor of each token in both terms, a constant for the gradient.
        temperature: divides the logits of both models within the divergence.
        chunk_tokens: tokens whose logits exist at one time; by memory when left out.
        params: ``beta``, ``alpha``, ``head_mass`` of the kinds that have them.

    Raises:
        ValueError: a divergence without a teacher, unknown kind, vocabularies or token counts that differ.
    """
    head = as_head(head)
    weights_N = None if weights_N is None else weights_N.detach()
    divergence_term = token_term = None
    if divergence is not None:
        check_kind(divergence)
        if teacher_hidden_ND is None or teacher_head is None:
            raise ValueError(f"the divergence {divergence} needs the teacher's hidden states and head")
        divergence_term = DivergenceTerm(
            divergence,
            teacher_hidden_ND,
            as_head(teacher_head),
            Settings(**params),
            temperature=temperature,
            weights_N=weights_N,
            coefficient=divergence_weight,
        )
    if cross_entropy_weight != 0.0 or divergence_term is None:

        def negative_log(logp_R: Tensor, place: slice) -> tuple[Tensor, Tensor]:
            slopes_R = torch.full_like(logp_R, -cross_entropy_weight)
            return -logp_R, slopes_R if weights_N is None else slopes_R * weights_N[place]

        token_term = TokenTerm(targets_N, negative_log)
    swept = sweep(
        hidden_ND,
        head,
        token_term=token_term,
        divergence_term=divergence_term,
        chunk_tokens=chunk_tokens,
        needs=gradients_needed(hidden_ND, head),
    )
    cross_entropy = _weighted_sum(swept.token_losses_N, weights_N)
    divergences = _weighted_sum(swept.divergences_N, weights_N)
    total = cross_entropy_weight * cross_entropy + divergence_weight * divergences
    return CrossEntropyLoss(attach(total, hidden_ND, head, swept), cross_entropy, divergences, swept.logp_N)


def logp_from_hidden(
    hidden_ND: Tensor,
    head: Head | Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    """log q of each target, (N,), float32 (float64 for float64 inputs), without gradient.

    ``temperature`` divides the logits. Raises ValueError where the numbers of tokens differ.
    """

    def nothing(logp_R: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        return logp_R, logp_R

    term = TokenTerm(targets_N, nothing, temperature)
    return sweep(hidden_ND, as_head(head), token_term=term, chunk_tokens=chunk_tokens).logp_N


def _weighted_sum(values_N: Tensor, weights_N: Tensor | None) -> Tensor:
    if weights_N is None or not values_N.numel():
        return values_N.sum()
    return (values_N * weights_N.detach().to(values_N.dtype)).sum()
