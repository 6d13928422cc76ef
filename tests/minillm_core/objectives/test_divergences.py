"""Every divergence against its definition in float64, its gradient against autograd's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm_core.objectives.divergences import KINDS, divergence


def kl(first, second):
    return (first * (first.log() - second.log())).sum(-1)


def definition(kind, student_logits, teacher_logits, temperature=1.0, beta=0.5, alpha=0.1, head_mass=0.5):
    """The definitions of docs/algorithm.md, word for word and with autograd."""
    q = (student_logits.double() / temperature).softmax(-1)
    p = (teacher_logits.double() / temperature).softmax(-1)
    if kind == "forward_kl":
        return kl(p, q)
    if kind == "reverse_kl":
        return kl(q, p)
    if kind == "jsd":
        middle = beta * p + (1 - beta) * q
        return beta * kl(p, middle) + (1 - beta) * kl(q, middle)
    if kind == "skew_forward_kl":
        return kl(p, alpha * p + (1 - alpha) * q)
    if kind == "skew_reverse_kl":
        return kl(q, alpha * q + (1 - alpha) * p)
    if kind == "tvd":
        return (p - q).abs().sum(-1) / 2
    shares = []
    for p_V, q_V in zip(p.tolist(), q.tolist(), strict=True):
        ranked = sorted(range(len(p_V)), key=lambda v: -p_V[v])
        mass, head = 0.0, set()
        for v in ranked:
            head.add(v)
            mass += p_V[v]
            if mass >= head_mass:
                break
        gaps = [abs(one - other) for one, other in zip(p_V, q_V, strict=True)]
        shares.append(math.fsum(gaps[v] for v in head) / math.fsum(gaps))
    share = torch.tensor(shares, dtype=torch.float64)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def logits(tokens=9, width=17, seed=0, scale=2.0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, tokens, width, generator=random, dtype=torch.float64)).to(dtype)
    return student.requires_grad_(True), teacher


TOLERANCES = [
    pytest.param(torch.float64, 1e-12, id="float64"),
    pytest.param(torch.float32, 2e-6, id="float32"),
    pytest.param(torch.bfloat16, 1e-2, id="bfloat16"),
    pytest.param(torch.float16, 1e-3, id="float16"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_definition(kind, temperature, dtype, tolerance):
    student, teacher = logits(dtype=dtype)
    got = divergence(kind, student, teacher, temperature=temperature)
    expected = definition(kind, student, teacher, temperature=temperature)
    assert got.shape == (9,)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=min(tolerance, 2e-6))
    weights = torch.linspace(0.2, 2, 9)
    (found,) = torch.autograd.grad((got * weights).sum(), student)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), student)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


# In adaptive_kl the head's share is a constant for the gradient, so finite differences do not apply.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "adaptive_kl"])
def test_gradient_is_that_of_finite_differences(kind):
    student, teacher = logits(tokens=3, width=5, scale=1.0)
    assert torch.autograd.gradcheck(lambda x: divergence(kind, x, teacher, temperature=1.7), (student,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_models_have_none(kind, dtype):
    student, _ = logits(dtype=dtype)
    got = divergence(kind, student, student.detach(), temperature=1.3)
    assert got.abs().max().item() < 1e-7
    assert torch.autograd.grad(got.sum(), student)[0].abs().max().item() < 1e-7


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    width=st.integers(2, 40),
    scale=st.floats(0.01, 60),
    seed=st.integers(0, 2**31),
    beta=st.floats(0.01, 0.99),
    alpha=st.floats(0.0, 1.0),
)
def test_never_negative_finite_and_shift_free(kind, width, scale, seed, beta, alpha):
    student, teacher = logits(tokens=4, width=width, seed=seed, scale=scale, dtype=torch.float32)
    options = {"beta": beta, "alpha": alpha}
    got = divergence(kind, student, teacher, **options)
    assert torch.isfinite(got).all()
    assert got.min().item() > -1e-4
    (gradient,) = torch.autograd.grad(got.sum(), student)
    assert torch.isfinite(gradient).all()
    # Adding a number to every logit changes no probability, so the gradient sums to nothing.
    assert gradient.sum(-1).abs().max().item() < 1e-4 * max(1.0, gradient.abs().max().item())
    torch.testing.assert_close(divergence(kind, student + 3, teacher - 5, **options), got, rtol=1e-3, atol=1e-3)


class TestLimits:
    def test_bounds(self):
        student, teacher = logits(scale=40.0)
        assert divergence("tvd", student, teacher).max() <= 1 + 1e-12
        assert divergence("jsd", student, teacher).max() <= math.log(2) + 1e-12
        assert divergence("skew_forward_kl", student, teacher, alpha=0.1).max() <= -math.log(0.1) + 1e-12

    @pytest.mark.parametrize(("kind", "plain"), [("skew_forward_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")])
    def test_skew_without_skew_is_plain(self, kind, plain):
        student, teacher = logits()
        torch.testing.assert_close(divergence(kind, student, teacher, alpha=0.0), divergence(plain, student, teacher))

    def test_jsd_near_its_ends(self):
        student, teacher = logits()
        near = 1e-6
        torch.testing.assert_close(
            divergence("jsd", student, teacher, beta=near) / near,
            divergence("forward_kl", student, teacher),
            rtol=1e-3,
            atol=0,
        )
        torch.testing.assert_close(
            divergence("jsd", student, teacher, beta=1 - near) / near,
            divergence("reverse_kl", student, teacher),
            rtol=1e-3,
            atol=0,
        )


class TestAdaptiveKL:
    def test_head_wider_than_the_likely_one(self):
        """A nearly flat teacher over many tokens: the head has hundreds."""
        student, teacher = logits(tokens=3, width=2000, scale=0.1)
        torch.testing.assert_close(
            divergence("adaptive_kl", student, teacher), definition("adaptive_kl", student, teacher).detach()
        )

    def test_head_mass_of_all_or_nothing(self):
        student, teacher = logits()
        torch.testing.assert_close(
            divergence("adaptive_kl", student, teacher, head_mass=1.0), divergence("forward_kl", student, teacher)
        )

    def test_share_follows_the_gap(self):
        """The student errs in the teacher's one head token alone against one that errs in the tail alone."""
        teacher = torch.tensor([[0.6, 0.2, 0.15, 0.05]]).log()
        tail = torch.tensor([[0.6, 0.15, 0.05, 0.2]]).log()
        torch.testing.assert_close(divergence("adaptive_kl", tail, teacher), divergence("reverse_kl", tail, teacher))


def test_what_does_not_fit_is_refused():
    student, teacher = logits()
    with pytest.raises(ValueError, match="choose one of forward_kl"):
        divergence("kl", student, teacher)
    with pytest.raises(ValueError, match="vocabulary they share"):
        divergence("tvd", student, teacher[:, :-1])
    with pytest.raises(ValueError, match="beta must"):
        divergence("jsd", student, teacher, beta=1.0)
    with pytest.raises(ValueError, match="alpha must"):
        divergence("skew_forward_kl", student, teacher, alpha=1.5)


def test_teacher_gets_no_gradient():
    student, teacher = logits()
    teacher.requires_grad_(True)
    divergence("jsd", student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert not divergence("jsd", student.detach(), teacher).requires_grad
