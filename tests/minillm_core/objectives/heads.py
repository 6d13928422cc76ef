"""Heads and hidden states for tests of losses, their full logits, and gradients compared."""

from __future__ import annotations

import pytest
import torch

from minillm_core.objectives.terms import Head

TOLERANCES = [
    # The inputs are rounded to the type; the reference computes with the rounded ones in float64.
    pytest.param(torch.float64, 1e-10, id="float64"),
    pytest.param(torch.float32, 2e-5, id="float32"),
    pytest.param(torch.bfloat16, 1e-2, id="bfloat16"),
    pytest.param(torch.float16, 2e-3, id="float16"),
]


def dense_logits(hidden, head):
    hidden, weight = hidden.double(), head.weight_VD.double()[: head.width]
    logits = hidden @ weight.T
    if head.bias_V is not None:
        logits = logits + head.bias_V.double()[: head.width]
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def make(tokens, *, width=13, dims=(6, 10), dtype=torch.float64, seed=0, extra=(0, 0), **head_options):
    """Student and teacher hidden states and heads; ``extra`` are padding rows of each weight."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    sides = []
    for dim, padding in zip(dims, extra, strict=True):
        head = Head(draw(width + padding, dim), draw(width + padding), vocab=width if padding else None, **head_options)
        sides.append((draw(tokens, dim), head))
    (hidden, head), (teacher_hidden, teacher_head) = sides
    for leaf in (hidden, head.weight_VD, head.bias_V):
        leaf.requires_grad_(True)
    targets = torch.randint(width, (tokens,), generator=random)
    return hidden, head, teacher_hidden, teacher_head, targets


def gradients(loss, hidden, head):
    return torch.autograd.grad(loss, (hidden, head.weight_VD, head.bias_V))


def assert_same(got, expected, tolerance):
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=tolerance * scale)
