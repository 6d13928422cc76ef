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
    divergence_from_hidden,
    logp_from_hidden,
    policy_loss_from_hidden,
    token_divergences_from_hidden,
)
from minillm_core.objectives.divergences import KINDS, divergence
from minillm_core.objectives.policy_gradient import clipped_surrogate
from minillm_core.objectives.products import release_buffers

pytestmark = pytest.mark.usefixtures("kernels")

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
    if head.scale is not None:
        logits = logits * head.scale
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


class TestDivergenceFromHidden:
    @pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_equals_dense(self, kind, dtype, tolerance):
        hidden, head, teacher_hidden, teacher_head, _ = make(7, dtype=dtype, extra=(3, 0))
        weights = torch.linspace(0.1, 1.25, 7)
        got = divergence_from_hidden(
            kind, hidden, head, teacher_hidden, teacher_head, chunk_tokens=3, temperature=1.3, weights_N=weights
        )
        values = divergence(
            kind, dense_logits(hidden, head), dense_logits(teacher_hidden, teacher_head), temperature=1.3
        )
        expected = (values * weights).sum()
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

    @pytest.mark.parametrize("options", [{"softcap": 2.0}, {"scale": 0.25}, {"softcap": 3.0, "scale": 1.5}])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_softcap_and_scale(self, options, dtype):
        hidden, head, teacher_hidden, teacher_head, _ = make(5, dtype=dtype, **options)
        got = divergence_from_hidden("reverse_kl", hidden, head, teacher_hidden, teacher_head, chunk_tokens=2)
        expected = divergence(
            "reverse_kl", dense_logits(hidden, head), dense_logits(teacher_hidden, teacher_head)
        ).sum()
        tolerance = 1e-10 if dtype == torch.float64 else 1e-2
        assert_same([got], [expected], tolerance)
        assert_same(gradients(got, hidden, head), gradients(expected, hidden, head), tolerance)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_products_in_half_precision(self, dtype):
        """The way of an accelerator: half-precision products, float32 for everything else."""
        hidden, head, teacher_hidden, teacher_head, _ = make(9, dtype=dtype)
        head, teacher_head = (replace(side, product_dtype=dtype) for side in (head, teacher_head))
        got = divergence_from_hidden("reverse_kl", hidden, head, teacher_hidden, teacher_head, chunk_tokens=4)
        expected = divergence(
            "reverse_kl", dense_logits(hidden, head), dense_logits(teacher_hidden, teacher_head)
        ).sum()
        assert_same([got], [expected], 2e-2)
        assert_same(gradients(got, hidden, head), gradients(expected, hidden, head), 3e-2)

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
        release_buffers()
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

    def test_token_values(self):
        hidden, head, teacher_hidden, teacher_head, _ = make(5)
        got = token_divergences_from_hidden("forward_kl", hidden, head, teacher_hidden, teacher_head, chunk_tokens=2)
        expected = divergence("forward_kl", dense_logits(hidden, head), dense_logits(teacher_hidden, teacher_head))
        assert not got.requires_grad
        torch.testing.assert_close(got, expected.detach())


class TestPolicyLossFromHidden:
    @pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
    @pytest.mark.parametrize(("long_part", "single_step", "weighted"), [
        (True, True, True), (True, True, False), (True, False, False), (False, True, True), (False, True, False),
    ])  # fmt: skip
    def test_equals_its_parts(self, dtype, tolerance, long_part, single_step, weighted):
        tokens, temperature = 23, 0.8
        hidden, head, teacher_hidden, teacher_head, targets = make(tokens, dtype=dtype, extra=(0, 5))
        student, teacher = (
            dense_logits(hidden, head) / temperature,
            dense_logits(teacher_hidden, teacher_head) / temperature,
        )
        logp = student.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
        random = torch.Generator().manual_seed(1)
        old = logp.detach().float() + 0.3 * torch.randn(tokens, generator=random)
        advantages, weights = torch.randn(tokens, generator=random), 1.25 * torch.rand(tokens, generator=random)
        got = policy_loss_from_hidden(
            hidden,
            head,
            targets,
            teacher_hidden_ND=teacher_hidden,
            teacher_head=teacher_head,
            old_logp_N=old,
            advantages_N=advantages,
            weights_N=weights,
            cliprange=0.2,
            single_step=single_step,
            single_step_weights_N=weights if weighted else None,
            long_part=long_part,
            temperature=temperature,
            chunk_tokens=5,
        )
        everywhere = torch.ones(tokens, dtype=torch.bool)
        long = clipped_surrogate(logp, old.double(), advantages, weights, everywhere, cliprange=0.2)
        values = divergence("reverse_kl", student, teacher)
        single = (values * weights).sum() if weighted else values.sum()
        expected = long * long_part + single * single_step
        assert_same(
            [got.total, got.long, got.single_step], [expected, long * long_part, single * single_step], tolerance
        )
        assert_same(gradients(got.total, hidden, head), gradients(expected, hidden, head), tolerance)
        entropy = -(student.softmax(-1) * student.log_softmax(-1)).sum()
        assert_same([got.reverse_kl, got.entropy, got.logp_N], [values.sum(), entropy, logp], tolerance)
        ratio = weights * (logp - old).exp()
        held = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
        assert 0 < held.sum() < tokens
        assert got.clipped.item() == held.sum().item()

    def test_long_part_alone_needs_no_teacher(self):
        hidden, head, _, _, targets = make(5)
        logp = dense_logits(hidden, head).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
        ones = torch.ones(5)
        options = {"old_logp_N": logp.detach(), "advantages_N": ones, "weights_N": ones, "cliprange": None}
        got = policy_loss_from_hidden(
            hidden, head, targets, teacher_hidden_ND=None, teacher_head=None, single_step=False, **options
        )
        assert got.reverse_kl.item() == 0.0
        assert_same(gradients(got.total, hidden, head), gradients(-logp.sum(), hidden, head), 1e-12)
        with pytest.raises(ValueError, match="single-step"):
            policy_loss_from_hidden(hidden, head, targets, teacher_hidden_ND=None, teacher_head=None, **options)

    def test_student_equal_to_teacher(self):
        hidden, head, _, _, targets = make(6, dtype=torch.float32)
        same = Head(head.weight_VD.detach(), head.bias_V.detach())
        logp = logp_from_hidden(hidden, head, targets)
        zeros, ones = torch.zeros(6), torch.ones(6)
        got = policy_loss_from_hidden(
            hidden,
            head,
            targets,
            teacher_hidden_ND=hidden.detach(),
            teacher_head=same,
            old_logp_N=logp,
            advantages_N=zeros,
            weights_N=ones,
            cliprange=0.2,
        )
        assert got.total.item() == 0.0
        assert not any(gradient.any() for gradient in gradients(got.total, hidden, head))

    def test_no_tokens_keeps_the_graph(self):
        hidden, head, teacher_hidden, teacher_head, targets = make(0)
        none = torch.zeros(0)
        got = policy_loss_from_hidden(
            hidden,
            head,
            targets,
            teacher_hidden_ND=teacher_hidden,
            teacher_head=teacher_head,
            old_logp_N=none,
            advantages_N=none,
            weights_N=none,
            cliprange=0.2,
            single_step_weights_N=none,
        )
        got.total.backward()
        assert head.weight_VD.grad.shape == head.weight_VD.shape
        assert not head.weight_VD.grad.any()


class TestCrossEntropyFromHidden:
    @pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
    @pytest.mark.parametrize(("kind", "ratio", "temperature"), [
        (None, 0.0, 1.0), ("forward_kl", 0.5, 1.0), ("forward_kl", 1.0, 1.0), ("jsd", 0.3, 2.0), ("tvd", 0.0, 1.0),
    ])  # fmt: skip
    @pytest.mark.parametrize("weighted", [False, True])
    def test_equals_dense(self, dtype, tolerance, kind, ratio, temperature, weighted):
        hidden, head, teacher_hidden, teacher_head, targets = make(8, dtype=dtype, softcap=4.0)
        weights = torch.linspace(0, 2, 8) if weighted else None
        got = cross_entropy_from_hidden(
            hidden,
            head,
            targets,
            cross_entropy_weight=1 - ratio,
            divergence=kind,
            divergence_weight=ratio,
            teacher_hidden_ND=teacher_hidden,
            teacher_head=teacher_head,
            weights_N=weights,
            temperature=temperature,
            chunk_tokens=3,
        )
        student, teacher = dense_logits(hidden, head), dense_logits(teacher_hidden, teacher_head)
        factor = torch.ones(8) if weights is None else weights
        expected = (1 - ratio) * (functional.cross_entropy(student, targets, reduction="none") * factor).sum()
        if kind is not None:
            values = (divergence(kind, student, teacher, temperature=temperature) * factor).sum()
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


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_logp_from_hidden(dtype, tolerance):
    hidden, head, _, _, targets = make(11, dtype=dtype, extra=(2, 0))
    got = logp_from_hidden(hidden, head, targets, temperature=0.7, chunk_tokens=4)
    expected = (dense_logits(hidden, head) / 0.7).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    assert not got.requires_grad
    assert_same([got], [expected], tolerance)


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


def test_a_bare_weight_is_a_head() -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher, heads = (torch.randn(*shape, generator=random) for shape in ((5, 4), (5, 6), (2, 9, 6)))
    weights = heads[0][:, :4].contiguous(), heads[1]
    targets = torch.tensor([0, 3, 8, 1, 2])
    for kind in ("reverse_kl", "jsd"):
        bare = divergence_from_hidden(kind, student, weights[0], teacher, weights[1])
        assert bare == divergence_from_hidden(kind, student, Head(weights[0]), teacher, Head(weights[1]))
    assert torch.equal(
        logp_from_hidden(student, weights[0], targets), logp_from_hidden(student, Head(weights[0]), targets)
    )
