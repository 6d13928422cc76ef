"""Divergences between the next-token distributions of teacher ``p`` and student ``q``.

Axes: N tokens, V vocabulary. Every kind is written once, as its value together with its gradient
by the student's logits, and serves both :func:`divergence` (all logits at once) and
``chunked`` (a few rows at a time, in reused memory). With ``g_v`` the derivative of the value by
``q_v``, the gradient by the logits is ``q_v (g_v - sum_u q_u g_u)``, divided by the temperature.

==================  =========================================================  ==================
kind                value                                                      source
==================  =========================================================  ==================
forward_kl          KL(p || q)                                                 Hinton et al. 2015
reverse_kl          KL(q || p)                                                 arXiv 2306.08543
jsd                 b KL(p || m) + (1-b) KL(q || m), m = b p + (1-b) q         arXiv 2306.13649
skew_forward_kl     KL(p || a p + (1-a) q)                                     arXiv 2402.03898
skew_reverse_kl     KL(q || a q + (1-a) p)                                     arXiv 2402.03898
adaptive_kl         h KL(p || q) + (1-h) KL(q || p), h from the head's gap     arXiv 2404.02657
tvd                 sum_v |p_v - q_v| / 2                                      arXiv 2307.15190
==================  =========================================================  ==================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KINDS = ("forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "adaptive_kl", "tvd")

# exp of the log ratio stays finite in float32; where p / q is beyond it, the smaller weighs nothing.
_LARGEST_LOG_RATIO = 80.0
# The head of a trained model's distribution nearly always lies within so many tokens.
_LIKELY_HEAD = 256


@dataclass(frozen=True)
class Settings:
    """Settings of the kinds that have one: b, a and the head's share in the table above."""

    beta: float = 0.5
    alpha: float = 0.1
    head_mass: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.beta < 1.0:
            raise ValueError(f"beta must be above 0 and below 1, not {self.beta}: both ends make jsd zero")
        for name in ("alpha", "head_mass"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie from 0 to 1, not {getattr(self, name)}")


def check_kind(kind: str) -> None:
    """Raises ValueError where ``kind`` is none of :data:`KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"unknown divergence {kind!r}: choose one of {', '.join(KINDS)}")


def _head_threshold(p_NV: Tensor, mass: float) -> Tensor:
    """Smallest probability (N, 1) within the head: the likeliest tokens that together reach ``mass``."""

    def threshold(ranked: Tensor) -> Tensor:
        missing = (ranked.cumsum(-1) < mass).sum(-1, keepdim=True)
        return ranked.gather(-1, missing.clamp_max(ranked.shape[-1] - 1))

    if p_NV.device.type != "cpu":
        return threshold(p_NV.sort(-1, descending=True).values)
    ranked = p_NV.topk(min(_LIKELY_HEAD, p_NV.shape[-1]), dim=-1).values
    result = threshold(ranked)
    rest = (ranked.sum(-1) < mass).nonzero().squeeze(-1)
    if len(rest):
        result[rest] = threshold(p_NV[rest].sort(-1, descending=True).values)
    return result


def value_and_gradient(
    kind: str,
    logq_NV: Tensor,
    logp_NV: Tensor,
    q_NV: Tensor,
    spare_NV: Tensor,
    *,
    settings: Settings,
    gradient: bool = True,
) -> Tensor:
    """Value of each row; the gradient by the student's logits (at temperature 1) lands in ``logq_NV``.

    Args:
        kind: one of :data:`KINDS`.
        logq_NV: log-softmax of the student; overwritten.
        logp_NV: log-softmax of the teacher; overwritten with nothing of use.
        q_NV: exp of ``logq_NV``; kept as it is.
        spare_NV: memory of the same shape and type; overwritten.
        settings: those of the kind.
        gradient: false leaves ``logq_NV`` undefined and saves the work.

    Returns:
        (N,), in the type of the inputs, which is float32 or float64.
    """
    a, b, x, q = logq_NV, logp_NV, spare_NV, q_NV

    def dot(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        return torch.mul(left, right, out=out).sum(-1, keepdim=True)

    if kind == "reverse_kl":
        a.sub_(b)
        value = dot(q, a, x)
        if gradient:
            a.sub_(value).mul_(q)
    elif kind == "forward_kl":
        torch.exp(b, out=x)
        b.sub_(a)
        value = dot(x, b, b)
        if gradient:
            torch.sub(q, x, out=a)
    elif kind == "tvd":
        torch.sub(q, b.exp_(), out=a)
        value = torch.abs(a, out=x).sum(-1, keepdim=True).mul_(0.5)
        if gradient:
            a.sign_().mul_(0.5)
            a.sub_(dot(q, a, x)).mul_(q)
    elif kind == "adaptive_kl":
        value = _adaptive_kl(a, b, x, q, head_mass=settings.head_mass, gradient=gradient)
    else:
        check_kind(kind)
        # The three mixtures share u = log(m / q) = log(1 + share_p (p/q - 1)), exact where p = q.
        share_p = {
            "jsd": settings.beta,
            "skew_forward_kl": settings.alpha,
            "skew_reverse_kl": 1.0 - settings.alpha,
        }[kind]
        torch.sub(b, a, out=a).clamp_(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
        if share_p <= 0.5:
            torch.expm1(a, out=x).mul_(share_p).log1p_()
        else:
            # The same from the other side, log(p / q) + log(m / p): near share 1 the first form cancels.
            torch.neg(a, out=x).expm1_().mul_(1.0 - share_p).log1p_().add_(a)
        if kind == "skew_reverse_kl":
            value = dot(q, x, b).neg_()
            if gradient:
                torch.neg(x, out=a).exp_().mul_(1.0 - share_p).add_(x)
                a.sub_(dot(q, a, b)).mul_(q).neg_()
        else:
            a.sub_(x)
            b.exp_()
            value = b.mul_(a).sum(-1, keepdim=True)
            if kind == "skew_forward_kl":
                if gradient:
                    a.exp_()
                    a.sub_(dot(q, a, x)).mul_(q).mul_(share_p - 1.0)
            else:
                from_student = dot(q, x, b).neg_()
                value.mul_(share_p).add_(from_student, alpha=1.0 - share_p)
                if gradient:
                    torch.add(x, from_student, out=a).mul_(q).mul_(share_p - 1.0)
    return value.squeeze(-1)


def _adaptive_kl(a: Tensor, b: Tensor, x: Tensor, q: Tensor, *, head_mass: float, gradient: bool) -> Tensor:
    """Forward KL where the models differ in the teacher's head, reverse KL where they differ in its tail.

    The share of each is a constant for the gradient.
    """
    torch.exp(b, out=x)
    in_head = x >= _head_threshold(x, head_mass)
    b.sub_(a)
    torch.sub(q, x, out=a).abs_()
    gap = a.sum(-1, keepdim=True)
    head = a.mul_(in_head).sum(-1, keepdim=True)
    share = torch.where(gap > 0, head / gap, 0.5)
    torch.mul(x, b, out=a)
    forward = a.sum(-1, keepdim=True)
    torch.mul(q, b, out=a)
    reverse = a.sum(-1, keepdim=True).neg_()
    if gradient:
        torch.sub(q, x, out=a).mul_(share)
        b.add_(reverse).mul_(share - 1.0).mul_(q)
        a.add_(b)
    return share * forward + (1.0 - share) * reverse


class _Divergence(torch.autograd.Function):
    """Keeps the gradient that comes with the value."""

    @staticmethod
    def forward(
        ctx: Any, student_logits: Tensor, teacher_logits: Tensor, kind: str, temperature: float, settings: Settings
    ) -> Tensor:
        dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
        logq = torch.log_softmax(student_logits.to(dtype) / temperature, dim=-1)
        logp = torch.log_softmax(teacher_logits.to(dtype) / temperature, dim=-1)
        value = value_and_gradient(
            kind, logq, logp, logq.exp(), torch.empty_like(logq), settings=settings, gradient=ctx.needs_input_grad[0]
        )
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(logq.div_(temperature))
        ctx.dtype = student_logits.dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output_N: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        (gradient_NV,) = ctx.saved_tensors
        return (gradient_NV * grad_output_N.unsqueeze(-1)).to(ctx.dtype), None, None, None, None


def divergence(
    kind: str,
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 0.5,
    alpha: float = 0.1,
    head_mass: float = 0.5,
) -> Tensor:
    """Divergence of each token's two distributions, in nats.

    Args:
        kind: one of :data:`KINDS`; the table at the head of the module has their definitions.
        student_logits_NV: the gradient flows here alone.
        teacher_logits_NV: over the same vocabulary; cut both to the shared one before.
        temperature: divides the logits of both. The value is not multiplied by its square.
        beta: the teacher's share b in ``jsd``.
        alpha: the share a of the first distribution in the skew kinds.
        head_mass: probability of the teacher's likeliest tokens that make the head of ``adaptive_kl``.

    Returns:
        (N,), float32, or float64 where the student's logits are.

    Raises:
        ValueError: unknown kind, different shapes, a setting out of its range.
    """
    check_kind(kind)
    if student_logits_NV.shape != teacher_logits_NV.shape:
        raise ValueError(
            f"student logits {tuple(student_logits_NV.shape)} and teacher logits {tuple(teacher_logits_NV.shape)} "
            "must have one shape: cut both to the vocabulary they share"
        )
    settings = Settings(beta=beta, alpha=alpha, head_mass=head_mass)
    value: Tensor = _Divergence.apply(student_logits_NV, teacher_logits_NV.detach(), kind, temperature, settings)  # type: ignore[no-untyped-call]
    return value
