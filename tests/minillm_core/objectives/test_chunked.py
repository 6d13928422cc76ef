"""Chunked losses against the same losses on full logits, in value and in every gradient."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from minillm_core.objectives import products
from minillm_core.objectives.chunked import (
    Head,
    cross_entropy_from_hidden,
)
from minillm_core.objectives.divergences import KINDS, divergence
from tests.minillm_core.objectives.heads import TOLERANCES, assert_same, dense_logits, gradients, make

pytestmark = pytest.mark.usefixtures("kernels")


def divergence_from_hidden(kind, hidden, head, teacher_hidden, teacher_head, **settings):
    """The divergence alone, summed over the tokens."""
    nothing = torch.zeros(len(hidden), dtype=torch.long)
    return cross_entropy_from_hidden(
        hidden,
        head,
        nothing,
        cross_entropy_weight=0.0,
        divergence=kind,
        divergence_weight=1.0,
        teacher_hidden_ND=teacher_hidden,
        teacher_head=teacher_head,
        **settings,
    ).total


class TestDivergenceFromHidden:
    @pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_equals_dense(self, kind, dtype, tolerance):
        hidden, head, teacher_hidden, teacher_head, _ = make(7, dtype=dtype, extra=(3, 0))
        got = divergence_from_hidden(kind, hidden, head, teacher_hidden, teacher_head, chunk_tokens=3, temperature=1.3)
        values = divergence(
            kind, dense_logits(hidden, head), dense_logits(teacher_hidden, teacher_head), temperature=1.3
        )
        expected = values.sum()
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_same([got], [expected], tolerance)
        found = gradients(got, hidden, head)
        assert [gradient.dtype for gradient in found] == [dtype] * 3
        assert_same(found, gradients(expected, hidden, head), tolerance)
        assert not found[1][head.width :].any()

    @pytest.mark.parametrize(("tokens", "chunk"), [(1, 1), (1, None), (5, 2), (5, 5), (5, 100), (17, 4), (33, None)])
    def test_any_number_of_tokens(self, tokens, chunk):
        hidden, head, teacher_hidden, teacher_head, _ = make(tokens, width=11)
        got = divergence_from_hidden("jsd", hidden, head, teacher_hidden, teacher_head, chunk_tokens=chunk, beta=0.3)
        expected = divergence(
            "jsd", dense_logits(hidden, head), dense_logits(teacher_hidden, teacher_head), beta=0.3
        ).sum()
        assert_same([got], [expected], 1e-12)
        assert_same(gradients(got, hidden, head), gradients(expected, hidden, head), 1e-12)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_softcap(self, dtype):
        hidden, head, teacher_hidden, teacher_head, _ = make(5, dtype=dtype, softcap=2.0)
        got = divergence_from_hidden("reverse_kl", hidden, head, teacher_hidden, teacher_head, chunk_tokens=2)
        expected = divergence(
            "reverse_kl", dense_logits(hidden, head), dense_logits(teacher_hidden, teacher_head)
        ).sum()
        tolerance = 1e-10 if dtype == torch.float64 else 1e-2
        assert_same([got], [expected], tolerance)
        assert_same(gradients(got, hidden, head), gradients(expected, hidden, head), tolerance)

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_tokens_keeps_the_graph(self, kind):
        hidden, head, teacher_hidden, teacher_head, _ = make(0)
        got = divergence_from_hidden(kind, hidden, head, teacher_hidden, teacher_head)
        assert got.item() == 0.0
        for gradient, leaf in zip(gradients(got, hidden, head), (hidden, head.weight_VD, head.bias_V), strict=True):
            assert gradient.shape == leaf.shape
            assert not gradient.any()

    def test_gradient_is_that_of_finite_differences(self):
        hidden, head, teacher_hidden, teacher_head, _ = make(3, width=5, dims=(3, 4))

        def loss(hidden, weight, bias):
            student = replace(head, weight_VD=weight, bias_V=bias)
            return divergence_from_hidden(
                "skew_reverse_kl", hidden, student, teacher_hidden, teacher_head, chunk_tokens=2
            )

        assert torch.autograd.gradcheck(loss, (hidden, head.weight_VD, head.bias_V))

    def test_scaled_backward_and_frozen_parts(self):
        hidden, head, teacher_hidden, teacher_head, _ = make(4)
        expected = gradients(divergence_from_hidden("tvd", hidden, head, teacher_hidden, teacher_head), hidden, head)
        (3.5 * divergence_from_hidden("tvd", hidden, head, teacher_hidden, teacher_head)).backward()
        assert_same([hidden.grad, head.weight_VD.grad, head.bias_V.grad], [3.5 * one for one in expected], 1e-12)

        frozen = replace(head, weight_VD=head.weight_VD.detach(), bias_V=None)
        only_hidden = divergence_from_hidden("tvd", hidden, frozen, teacher_hidden, teacher_head)
        assert torch.autograd.grad(only_hidden, hidden)[0].shape == hidden.shape
        teacher_hidden.requires_grad_(True)
        loss = divergence_from_hidden("tvd", hidden.detach(), frozen, teacher_hidden, teacher_head)
        assert not loss.requires_grad

    def test_retained_graph(self):
        hidden, head, teacher_hidden, teacher_head, _ = make(4)
        loss = divergence_from_hidden("jsd", hidden, head, teacher_hidden, teacher_head)
        once = torch.autograd.grad(2 * loss, hidden, retain_graph=True)[0]
        assert torch.equal(once, torch.autograd.grad(2 * loss, hidden)[0])
        with pytest.raises(RuntimeError, match="retain_graph"):
            torch.autograd.grad(loss, hidden)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_without_gradient(self, context):
        hidden, head, teacher_hidden, teacher_head, _ = make(4)
        with context():
            loss = divergence_from_hidden("jsd", hidden, head, teacher_hidden, teacher_head)
        assert not loss.requires_grad
        # What inference mode left behind serves a later training step.
        again = divergence_from_hidden("jsd", hidden, head, teacher_hidden, teacher_head)
        gradients(again, hidden, head)
        assert again.item() == pytest.approx(loss.item())

    def test_autocast_changes_nothing(self):
        hidden, head, teacher_hidden, teacher_head, _ = make(4, dtype=torch.float32)
        plain = divergence_from_hidden("jsd", hidden, head, teacher_hidden, teacher_head)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = divergence_from_hidden("jsd", hidden, head, teacher_hidden, teacher_head)
        assert cast.item() == plain.item()

    def test_split_and_order_of_the_tokens(self):
        hidden, head, teacher_hidden, teacher_head, _ = make(9)

        def grads(rows):
            loss = divergence_from_hidden(
                "adaptive_kl", hidden[rows], head, teacher_hidden[rows], teacher_head, chunk_tokens=2
            )
            return [loss.detach(), *gradients(loss, hidden, head)]

        whole = grads(slice(None))
        assert_same(grads(torch.randperm(9)), whole, 1e-12)
        parts = [grads(slice(0, 4)), grads(slice(4, 4)), grads(slice(4, 9))]
        assert_same([sum(part) for part in zip(*parts, strict=True)], whole, 1e-12)

    @pytest.mark.parametrize("onednn", [True, False])
    def test_blocks_of_a_large_product(self, onednn, monkeypatch):
        """A vocabulary that the products split into several blocks, and a tile that splits the chunk; either library.

        Not narrower: for a handful of columns MKL sums the vocabulary straight through, which costs a digit.
        """
        monkeypatch.setattr(products, "onednn_pays", lambda: onednn and products.onednn_available())
        hidden, head, teacher_hidden, teacher_head, _ = make(24, width=70_001, dims=(32, 48), dtype=torch.float32)
        got = divergence_from_hidden("reverse_kl", hidden, head, teacher_hidden, teacher_head, chunk_tokens=20)
        expected = divergence(
            "reverse_kl", dense_logits(hidden, head), dense_logits(teacher_hidden, teacher_head)
        ).sum()
        # float32 sums over 70,001 tokens of the vocabulary
        assert_same([got / 24], [expected / 24], 1e-4)
        assert_same(gradients(got, hidden, head), gradients(expected, hidden, head), 1e-4)

    def test_what_does_not_fit_is_refused(self):
        hidden, head, teacher_hidden, teacher_head, _ = make(4)
        with pytest.raises(ValueError, match="choose one of"):
            divergence_from_hidden("kl", hidden, head, teacher_hidden, teacher_head)
        with pytest.raises(ValueError, match="vocab of both"):
            divergence_from_hidden("tvd", hidden, replace(head, vocab=12), teacher_hidden, teacher_head)
        with pytest.raises(ValueError, match="3 teacher hidden states for 4"):
            divergence_from_hidden("tvd", hidden, head, teacher_hidden[:3], teacher_head)
        with pytest.raises(ValueError, match="vocab must be 1 to 13"):
            divergence_from_hidden("tvd", hidden, replace(head, vocab=14), teacher_hidden, teacher_head)
        with pytest.raises(ValueError, match="chunk_tokens"):
            divergence_from_hidden("tvd", hidden, head, teacher_hidden, teacher_head, chunk_tokens=0)
        with pytest.raises(TypeError, match="gamma"):
            divergence_from_hidden("tvd", hidden, head, teacher_hidden, teacher_head, gamma=0.5)


class TestCrossEntropyFromHidden:
    @pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
    @pytest.mark.parametrize(("kind", "ratio", "temperature"), [
        (None, 0.0, 1.0), ("forward_kl", 0.5, 1.0), ("forward_kl", 1.0, 1.0), ("jsd", 0.3, 2.0), ("tvd", 0.0, 1.0),
    ])  # fmt: skip
    def test_equals_dense(self, dtype, tolerance, kind, ratio, temperature):
        hidden, head, teacher_hidden, teacher_head, targets = make(8, dtype=dtype, softcap=4.0)
        got = cross_entropy_from_hidden(
            hidden,
            head,
            targets,
            cross_entropy_weight=1 - ratio,
            divergence=kind,
            divergence_weight=ratio,
            teacher_hidden_ND=teacher_hidden,
            teacher_head=teacher_head,
            temperature=temperature,
            chunk_tokens=3,
        )
        student, teacher = dense_logits(hidden, head), dense_logits(teacher_hidden, teacher_head)
        expected = (1 - ratio) * functional.cross_entropy(student, targets, reduction="sum")
        if kind is not None:
            values = divergence(kind, student, teacher, temperature=temperature).sum()
            assert_same([got.divergence], [values], tolerance)
            expected = expected + ratio * values
        assert_same([got.total], [expected], tolerance)
        assert_same(gradients(got.total, hidden, head), gradients(expected, hidden, head), tolerance)

    def test_a_divergence_needs_a_teacher(self):
        hidden, head, _, _, targets = make(3)
        with pytest.raises(ValueError, match="needs the teacher"):
            cross_entropy_from_hidden(hidden, head, targets, divergence="tvd", divergence_weight=1.0)
        with pytest.raises(ValueError, match="2 targets for 3"):
            cross_entropy_from_hidden(hidden, head, targets[:2])


def test_tied_embedding_gets_both_gradients():
    """The head's weight is usually the embedding: its gradient adds to the one through the hidden states."""
    torch.manual_seed(0)
    embedding = torch.nn.Parameter(torch.randn(9, 4, dtype=torch.float64))
    ids, targets = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    for checkpointed, chunk in itertools.product([False, True], [1, 3]):

        def hidden(weight):
            return torch.tanh(functional.embedding(ids, weight))

        states = (
            torch.utils.checkpoint.checkpoint(hidden, embedding, use_reentrant=False)
            if checkpointed
            else hidden(embedding)
        )
        loss = cross_entropy_from_hidden(states, Head(embedding), targets, chunk_tokens=chunk).total
        got = torch.autograd.grad(loss, embedding)[0]
        dense = functional.cross_entropy(hidden(embedding) @ embedding.T, targets, reduction="sum")
        torch.testing.assert_close(got, torch.autograd.grad(dense, embedding)[0])
