"""The MiniLLM loss from hidden states against its two parts on full logits, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch

from minillm_core import minillm
from minillm_core.objectives.divergences import divergence
from minillm_core.objectives.policy_gradient import clipped_surrogate
from minillm_core.objectives.terms import Head
from minillm_core.spec import MiniLLM
from tests.minillm_core.objectives.heads import TOLERANCES, assert_same, dense_logits, gradients, make

pytestmark = pytest.mark.usefixtures("kernels")


def minillm_loss(hidden, head, targets, *, cliprange=0.2, weighted=True, chunk_tokens=None, **given):
    """The loss with the settings of the default recipe but for those given."""
    tensors = {name: given.pop(name) for name in list(given) if name.endswith(("_N", "_ND", "_head"))}
    settings = {"single_step_weighted": weighted, "clip": cliprange is not None, **given}
    if cliprange is not None:
        settings["cliprange"] = cliprange
    resolved = MiniLLM(type="minillm", **settings).resolved()
    return minillm.loss(hidden, head, targets, resolved, chunk_tokens=chunk_tokens, **tensors)


class TestLoss:
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
        got = minillm_loss(
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
            weighted=weighted,
            long_part=long_part,
            temperature=temperature,
            chunk_tokens=5,
        )
        losses, _ = clipped_surrogate(logp, old.double(), advantages, weights, cliprange=0.2)
        long = losses.sum()
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
        got = minillm_loss(
            hidden, head, targets, teacher_hidden_ND=None, teacher_head=None, single_step=False, **options
        )
        assert got.reverse_kl.item() == 0.0
        assert_same(gradients(got.total, hidden, head), gradients(-logp.sum(), hidden, head), 1e-12)
        with pytest.raises(ValueError, match="single-step"):
            minillm_loss(hidden, head, targets, teacher_hidden_ND=None, teacher_head=None, **options)

    def test_student_equal_to_teacher(self):
        hidden, head, _, _, targets = make(6, dtype=torch.float32)
        same = Head(head.weight_VD.detach(), head.bias_V.detach())
        logp = dense_logits(hidden, head).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1).detach().float()
        zeros, ones = torch.zeros(6), torch.ones(6)
        got = minillm_loss(
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
        got = minillm_loss(
            hidden,
            head,
            targets,
            teacher_hidden_ND=teacher_hidden,
            teacher_head=teacher_head,
            old_logp_N=none,
            advantages_N=none,
            weights_N=none,
            cliprange=0.2,
        )
        got.total.backward()
        assert head.weight_VD.grad.shape == head.weight_VD.shape
        assert not head.weight_VD.grad.any()
