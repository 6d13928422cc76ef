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

import torch
from torch import Tensor

from minillm_core.objectives.divergences import Settings, check_kind
from minillm_core.objectives.sweep import attach, gradients_needed, sweep
from minillm_core.objectives.terms import DivergenceTerm, Head, TokenTerm

__all__ = ["CrossEntropyLoss", "Head", "cross_entropy_from_hidden"]


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


def cross_entropy_from_hidden(
    hidden_ND: Tensor,
    head: Head,
    targets_N: Tensor,
    *,
    cross_entropy_weight: float = 1.0,
    divergence: str | None = None,
    divergence_weight: float = 0.0,
    teacher_hidden_ND: Tensor | None = None,
    teacher_head: Head | None = None,
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
        temperature: divides the logits of both models within the divergence.
        chunk_tokens: tokens whose logits exist at one time; by memory when left out.
        params: ``beta``, ``alpha``, ``head_mass`` of the kinds that have them.

    Raises:
        ValueError: a divergence without a teacher, unknown kind, vocabularies or token counts that differ.
    """
    divergence_term = token_term = None
    if divergence is not None:
        check_kind(divergence)
        if teacher_hidden_ND is None or teacher_head is None:
            raise ValueError(f"the divergence {divergence} needs the teacher's hidden states and head")
        divergence_term = DivergenceTerm(
            divergence,
            teacher_hidden_ND,
            teacher_head,
            Settings(**params),
            temperature=temperature,
            coefficient=divergence_weight,
        )
    if cross_entropy_weight != 0.0 or divergence_term is None:

        def negative_log(logp_R: Tensor, place: slice) -> tuple[Tensor, Tensor]:
            return -logp_R, torch.full_like(logp_R, -cross_entropy_weight)

        token_term = TokenTerm(targets_N, negative_log)
    swept = sweep(
        hidden_ND,
        head,
        token_term=token_term,
        divergence_term=divergence_term,
        chunk_tokens=chunk_tokens,
        needs=gradients_needed(hidden_ND, head),
    )
    cross_entropy, divergences = swept.token_losses_N.sum(), swept.divergences_N.sum()
    total = cross_entropy_weight * cross_entropy + divergence_weight * divergences
    return CrossEntropyLoss(attach(total, hidden_ND, head, swept), cross_entropy, divergences, swept.logp_N)
