"""MiniLLM (arXiv 2306.08543) from top to bottom: what a round and a step compute, in the order of the paper.

The teacher is ``p``, the student ``q`` with its weights theta; ``x`` is a prompt, ``y`` a response of T tokens.

=====================  =========================================================================================
objective (2.1)        minimise over theta ``KL(q || p) = -E_{y~q} log p(y|x) / q(y|x)``
policy gradient (2.2)  ``-E_{y~q} sum_t (R_t - 1) grad log q(y_t)`` with ``r_t = log p(y_t) - log q(y_t)`` and
                       ``R_t = sum_{t'>=t} r_t'``
single step (2.2)      the immediate reward's part is an expectation over the vocabulary, taken exactly:
                       ``-sum_t grad E_{v~q}[r_t(v)]``, which is ``sum_t grad KL(q || p)`` at each position;
                       the rest, ``-sum_t R_{t+1} grad log q(y_t)``, is the long part
teacher mixing (2.2)   y is drawn from ``m = alpha p + (1 - alpha) q``, every token of it;
                       both parts carry ``w_t = q(y_t) / m(y_t)``
length norm (2.2)      ``R_{t+1}`` divided by the number of tokens that it sums
optimisation (2.3)     several passes over a round; ``rho_t = w_t q(y_t) / q_old(y_t)``, clipped to ``1 +- epsilon``
=====================  =========================================================================================

The three calls below come at three times: :func:`returns_and_weights` once a round, :func:`advantages` once a step
(over the rows of all ranks), :func:`loss` once a micro-batch. The functions that they call stand in
:mod:`minillm_core.objectives`; sampling is :mod:`minillm_core.rollout`, the loss on the pre-training corpus
:func:`minillm_core.objectives.chunked.cross_entropy_from_hidden`. Where the paper and its published code differ, a
setting decides (:data:`minillm_core.spec.RECIPES`, docs/algorithm.md).

Axes: B rows, T response positions, N tokens that count of all rows joined, D hidden width of the model named,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_core.objectives.policy_gradient import (
    clipped_surrogate,
    importance_weights,
    rewards_to_go,
    token_rewards,
    whiten,
)
from minillm_core.objectives.sweep import attach, gradients_needed, sweep
from minillm_core.objectives.terms import DivergenceTerm, Head, TokenTerm
from minillm_core.spec import ResolvedMiniLLM


def returns_and_weights(
    student_logp_BT: Tensor, teacher_logp_BT: Tensor, mask_BT: Tensor, settings: ResolvedMiniLLM
) -> tuple[Tensor, Tensor]:
    """Rewards-to-go ``R_{t+1}`` and importance weights ``w_t`` of a round's rollouts.

    Args:
        student_logp_BT: log q of the sampled tokens, in nats, by the weights that sampled them.
        teacher_logp_BT: log p of the same tokens; looked at where :func:`uses_teacher_logp` says so.
        mask_BT: true where a token counts.

    Returns:
        Two tensors (B, T), without graph, zero (the first) where nothing counts.
    """
    weights_BT = importance_weights(student_logp_BT, teacher_logp_BT, alpha=settings.teacher_mix_alpha)
    if not uses_teacher_logp(settings):
        return torch.zeros_like(weights_BT), weights_BT
    rewards_BT = token_rewards(
        teacher_logp_BT, student_logp_BT, mask_BT, scale=settings.reward_scale, clip=settings.reward_clip
    )
    returns_BT = rewards_to_go(
        rewards_BT,
        mask_BT,
        gamma=settings.gamma,
        start=settings.reward_start,
        length_norm=settings.length_norm,
    )
    return returns_BT - settings.reward_baseline, weights_BT


def uses_teacher_logp(settings: ResolvedMiniLLM) -> bool:
    """Whether a reward or a weight is made of the teacher's log-probability of each sampled token."""
    return settings.teacher_mix_alpha > 0 or settings.long_part


def advantages(
    returns_BT: Tensor,
    mask_BT: Tensor,
    settings: ResolvedMiniLLM,
    *,
    all_reduce: Callable[[Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Rewards-to-go as the surrogate takes them: whitened over the rows of a step, or as they are.

    ``all_reduce`` is that of :func:`~minillm_core.objectives.policy_gradient.whiten`. (B, T), zero where masked.
    """
    return whiten(returns_BT, mask_BT, mode=settings.whitening, all_reduce=all_reduce)


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of some tokens. All but ``total`` are without graph."""

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


def loss(
    student_hidden_ND: Tensor,
    student_head: Head,
    targets_N: Tensor,
    settings: ResolvedMiniLLM,
    *,
    teacher_hidden_ND: Tensor | None,
    teacher_head: Head | None,
    old_logp_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    chunk_tokens: int | None = None,
) -> PolicyLoss:
    """The paper's equation 7, ``sum_t w_t [KL(q || p)_t - A_t rho_t]`` with its clip, summed over the tokens.

    One pass over the vocabulary for both parts, never holding the logits of more than ``chunk_tokens`` tokens.

    Args:
        student_hidden_ND: final hidden states of the student at the positions that predict the tokens.
        targets_N: ids of the sampled tokens.
        settings: which parts there are, and how they are clipped and weighted.
        teacher_hidden_ND: hidden states of the teacher at the same positions, kept from the rollout;
            None, with ``teacher_head`` None, computes the long part alone.
        old_logp_N: log q of the targets under the weights that sampled.
        advantages_N: as :func:`advantages` gives them.
        weights_N: as :func:`returns_and_weights` gives them.
        chunk_tokens: by memory when left out.

    Raises:
        ValueError: the single-step part without a teacher, vocabularies or token counts that differ.
    """
    if (teacher_hidden_ND is None) != (teacher_head is None):
        raise ValueError("give teacher_hidden_ND and teacher_head together")
    if settings.single_step and teacher_head is None:
        raise ValueError("the single-step part needs the teacher's hidden states and head")
    held_N = torch.zeros(targets_N.shape, dtype=torch.bool, device=student_hidden_ND.device)

    def long_part(logp_R: Tensor, place: slice) -> tuple[Tensor, Tensor]:
        """``-A_t rho_t`` of some tokens, and its slope by log q: the loss itself, or 0 where the clip holds it."""
        losses_R, held_R = clipped_surrogate(
            logp_R,
            old_logp_N[place],
            advantages_N[place],
            weights_N[place],
            cliprange=settings.cliprange if settings.clip else None,
            clip_sign=settings.clip_sign,
        )
        held_N[place] = held_R
        if not settings.long_part:
            losses_R = torch.zeros_like(losses_R)
        return losses_R, losses_R.masked_fill(held_R, 0.0)

    single_step_weights_N = weights_N.detach() if settings.single_step_weighted else None
    single_step = None
    if teacher_hidden_ND is not None and teacher_head is not None:
        single_step = DivergenceTerm(
            "reverse_kl",
            teacher_hidden_ND,
            teacher_head,
            temperature=settings.temperature,
            weights_N=single_step_weights_N,
            coefficient=1.0 if settings.single_step else 0.0,
        )
    swept = sweep(
        student_hidden_ND,
        student_head,
        token_term=TokenTerm(targets_N, long_part, settings.temperature),
        divergence_term=single_step,
        chunk_tokens=chunk_tokens,
        entropy=True,
        needs=gradients_needed(student_hidden_ND, student_head),
    )
    long = swept.token_losses_N.sum()
    reverse_kl_N = swept.divergences_N
    if not settings.single_step:
        single = torch.zeros_like(long)
    elif single_step_weights_N is None:
        single = reverse_kl_N.sum()
    else:
        single = (reverse_kl_N * single_step_weights_N.to(reverse_kl_N.dtype)).sum()
    return PolicyLoss(
        total=attach(long + single, student_hidden_ND, student_head, swept),
        long=long,
        single_step=single,
        clipped=held_N.sum(),
        reverse_kl=reverse_kl_N.sum(),
        entropy=swept.entropies_N.sum(),
        logp_N=swept.logp_N,
    )
