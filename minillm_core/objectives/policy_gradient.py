"""The policy-gradient side of MiniLLM (arXiv 2306.08543): rewards, advantages, weights, surrogate.

Axes: B rows, T response positions of a padded batch. ``p`` is the teacher, ``q`` the student.

Every function takes an explicit mask (true where a response token counts), gives exactly zero
where it is false whatever the values there, and returns sums, never means: the caller divides by
the token count of the whole global batch, so that micro-batches, accumulation and ranks change
nothing. Half-precision inputs are computed and returned in float32, float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

WHITENING_EPSILON = 1e-8


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def token_rewards(
    teacher_logp_BT: Tensor,
    student_logp_BT: Tensor,
    mask_BT: Tensor,
    *,
    scale: float = 1.0,
    clip: float | None = None,
) -> Tensor:
    """Reward of each sampled token, ``r_t = log p(y_t) - log q(y_t)`` (paper, section 2.2).

    Args:
        teacher_logp_BT: log p of the sampled tokens, in nats.
        student_logp_BT: log q of the same tokens, in nats, by the student that sampled them.
        mask_BT: true where a token counts.
        scale: the reward is divided by it, then clipped (the reference code's order).
        clip: bound of the absolute value after scaling; None for no bound.

    Returns:
        (B, T), without graph, zero where masked.
    """
    rewards = (_wide(teacher_logp_BT.detach()) - _wide(student_logp_BT.detach())) / scale
    if clip is not None:
        rewards = rewards.clamp(-clip, clip)
    return torch.where(mask_BT.bool(), rewards, 0.0)


def _suffix_sums(values_BT: Tensor, decay_BT: Tensor) -> Tensor:
    """``s_t = v_t + decay_t s_{t+1}`` for every t in log2(T) vector steps instead of T."""
    sums, decays = values_BT, decay_BT
    stride, length = 1, values_BT.shape[-1]
    while stride < length:
        carried = torch.zeros_like(sums)
        carried[..., :-stride] = decays[..., :-stride] * sums[..., stride:]
        beyond = torch.zeros_like(decays)
        beyond[..., :-stride] = decays[..., :-stride] * decays[..., stride:]
        sums, decays = sums + carried, beyond
        stride *= 2
    return sums


def rewards_to_go(
    rewards_BT: Tensor,
    mask_BT: Tensor,
    *,
    gamma: float = 1.0,
    start: Literal["next", "current"] = "next",
    length_norm: bool = True,
) -> Tensor:
    """Reward still to come after (or from) each token: ``R_{t+1}`` or ``R_t`` of the paper's equations 3 to 6.

    Args:
        rewards_BT: as :func:`token_rewards` gives them.
        mask_BT: true where a token counts. Positions that do not count are stepped over: they
            neither add, nor discount, nor lengthen.
        gamma: discount for each later token, 0 to 1. The first token of a sum has factor 1.
        start: ``"next"`` sums from the token after this one (paper), ``"current"`` from this one
            (reference code, which so counts the immediate reward in both parts of the gradient).
        length_norm: divide by the undiscounted number of tokens summed.

    Returns:
        (B, T), zero where masked and where there is nothing to sum.
    """
    if start not in ("next", "current"):
        raise ValueError(f"start must be 'next' or 'current', not {start!r}")
    mask = mask_BT.bool()
    rewards = torch.where(mask, _wide(rewards_BT), 0.0)
    ones = torch.ones_like(rewards)
    sums = _suffix_sums(rewards, torch.where(mask, gamma * ones, ones))
    counts = mask.flip(-1).to(rewards.dtype).cumsum(-1).flip(-1)
    if start == "next":
        # A masked position hands on the sum of what follows it, so the neighbour to the right
        # holds the sum from the next token that counts.
        sums = torch.nn.functional.pad(sums[..., 1:], (0, 1))
        counts = counts - mask.to(counts.dtype)
    if length_norm:
        sums = sums / counts.clamp_min(1.0)
    return torch.where(mask & (counts > 0), sums, 0.0)


def whiten(
    values_BT: Tensor,
    mask_BT: Tensor,
    *,
    mode: Literal["off", "masked", "padded"] = "masked",
    all_reduce: Callable[[Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Shift and scale to mean 0 and variance 1: ``(v - mean) / sqrt(variance + 1e-8)``.

    Args:
        values_BT: one value a token, zero where masked.
        mask_BT: true where a token counts.
        mode: ``"off"`` changes nothing; ``"masked"`` takes mean and (population) variance over the
            tokens that count; ``"padded"`` over every position of the batch, padding included, as
            the reference code does.
        all_reduce: called with a float64 tensor of three numbers (count, sum, sum of squares) that
            it must sum over all ranks, in place or as its result, so that the statistics are those
            of the global batch. Every rank must call, also one without a token.

    Returns:
        (B, T), zero where masked.
    """
    mask = mask_BT.bool()
    values = _wide(values_BT)
    if mode == "off":
        return torch.where(mask, values, 0.0)
    if mode == "masked":
        counted = mask.double()
        included = torch.where(mask, values, 0.0).double()
    elif mode == "padded":
        counted = torch.ones_like(values, dtype=torch.float64)
        included = values.double()
    else:
        raise ValueError(f"mode must be 'off', 'masked' or 'padded', not {mode!r}")
    moments = torch.stack([counted.sum(), included.sum(), included.square().sum()])
    if all_reduce is not None:
        reduced = all_reduce(moments)
        moments = moments if reduced is None else reduced
    count = moments[0].clamp_min(1.0)
    mean = moments[1] / count
    variance = (moments[2] / count - mean.square()).clamp_min(0.0)
    whitened = (values.double() - mean) * torch.rsqrt(variance + WHITENING_EPSILON)
    return torch.where(mask, whitened, 0.0).to(values.dtype)


def importance_weights(student_logp_BT: Tensor, teacher_logp_BT: Tensor, *, alpha: float) -> Tensor:
    """Weight of a token drawn from the teacher-mixed distribution, ``q / ((1 - alpha) q + alpha p)``.

    This is the last factor of the exact product over the prefix (paper, section 2.2; what leaving
    out the others costs is measured in docs/algorithm.md).

    Args:
        student_logp_BT: log q of the sampled tokens, in nats.
        teacher_logp_BT: log p of the same tokens.
        alpha: share of the teacher, 0 to below 1.

    Returns:
        The shape of the inputs, without graph, in (0, 1 / (1 - alpha)]; exactly 1 where alpha is 0.
    """
    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"alpha must be at least 0 and below 1, not {alpha}")
    student, teacher = _wide(student_logp_BT.detach()), _wide(teacher_logp_BT.detach())
    if alpha == 0.0:
        return torch.ones_like(student)
    # Beyond exp(80) the weight is below 1e-34 and no longer matters; float32 ends at exp(88).
    odds = (teacher - student).clamp_max(80.0).exp()
    return (1.0 / ((1.0 - alpha) + alpha * odds)).clamp_max(1.0 / (1.0 - alpha))


def clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    cliprange: float | None,
    clip_sign: Literal["signed", "unsigned"] = "signed",
) -> tuple[Tensor, Tensor]:
    """Long part of the loss, token by token: the PPO surrogate with the importance weight inside the clip.

    With ``rho = weight * exp(logp - old_logp)`` the loss is
    ``max(-A rho, -A clip(rho, 1 - cliprange, 1 + cliprange))``, or without the sign, as the paper
    writes it, ``-A min(rho, clip(rho, 1 - cliprange, 1 + cliprange))``. Where the clip holds, the
    loss does not depend on ``logp``; elsewhere its derivative by ``logp`` is the loss itself.

    Args:
        logp: log q of the sampled tokens under the present weights; the gradient flows here alone.
        old_logp: the same under the weights that sampled.
        advantages: rewards to go, whitened or not.
        weights: as :func:`importance_weights` gives them.
        cliprange: half width of the clip around 1; None for no clip.

    Returns:
        The losses, and true where the clip holds one; the shape of the inputs, which is the same for all.
    """
    ratio = weights.detach() * (logp - old_logp.detach()).exp()
    advantages = advantages.detach()
    losses = -advantages * ratio
    if cliprange is None:
        return losses, torch.zeros_like(losses, dtype=torch.bool)
    low, high = 1.0 - cliprange, 1.0 + cliprange
    if clip_sign == "signed":
        held = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
    else:
        held = ratio > high
    return torch.where(held, -advantages * ratio.detach().clamp(low, high), losses), held
