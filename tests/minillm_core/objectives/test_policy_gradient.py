"""Rewards, advantages, weights and surrogate against slow float64 loops written from the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm_core.objectives.divergences import divergence
from minillm_core.objectives.policy_gradient import (
    clipped_surrogate,
    importance_weights,
    rewards_to_go,
    token_rewards,
    whiten,
)

PARITY = 1e-5


def batch(seed=0, rows=5, length=9, dtype=torch.float32):
    """Teacher and student log-probabilities, with garbage in the padding; responses of 0, 1, ``length`` tokens."""
    random = torch.Generator().manual_seed(seed)
    teacher, student = -3 * torch.rand(2, rows, length, generator=random)
    lengths = [0, 1, length, *torch.randint(0, length + 1, (rows - 3,), generator=random).tolist()]
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    return teacher.to(dtype), student.to(dtype), mask


def slow_rewards(teacher, student, mask, scale=1.0, clip=math.inf):
    return [
        [max(-clip, min(clip, (float(p) - float(q)) / scale)) if m else 0.0 for p, q, m in zip(*row, strict=True)]
        for row in zip(teacher, student, mask, strict=True)
    ]


def slow_rewards_to_go(rewards, mask, gamma, start, length_norm):
    result = []
    for row, counted in zip(rewards, mask, strict=True):
        places = [t for t in range(len(row)) if counted[t]]
        values = [0.0] * len(row)
        for i, t in enumerate(places):
            summed = places[i + 1 :] if start == "next" else places[i:]
            total = math.fsum(gamma**k * float(row[u]) for k, u in enumerate(summed))
            values[t] = total / len(summed) if length_norm and summed else total
        result.append(values)
    return result


def slow_whiten(values, included):
    chosen = [v for row, counted in zip(values, included, strict=True) for v, m in zip(row, counted, strict=True) if m]
    mean = math.fsum(chosen) / len(chosen)
    variance = math.fsum((v - mean) ** 2 for v in chosen) / len(chosen)
    return [[(v - mean) / math.sqrt(variance + 1e-8) for v in row] for row in values]


def close(got, expected, mask=None, tolerance=PARITY):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    if mask is not None:
        expected = torch.where(mask, expected, 0.0)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


class TestTokenRewards:
    @pytest.mark.parametrize(("scale", "clip"), [(1.0, None), (0.5, None), (0.5, 1.5), (2.0, 0.25)])
    def test_parity(self, scale, clip):
        teacher, student, mask = batch()
        got = token_rewards(teacher, student, mask, scale=scale, clip=clip)
        close(got, slow_rewards(teacher, student, mask, scale, math.inf if clip is None else clip))

    def test_garbage_in_the_padding_stays_out(self):
        teacher, student, mask = batch()
        expected = token_rewards(teacher, student, mask)
        teacher[~mask], student[~mask] = math.nan, -math.inf
        assert torch.equal(token_rewards(teacher, student, mask), expected)

    def test_half_precision_is_widened_and_gradients_stop(self):
        teacher, student, mask = batch(dtype=torch.bfloat16)
        got = token_rewards(teacher, student.requires_grad_(True), mask)
        assert got.dtype == torch.float32
        assert not got.requires_grad


class TestRewardsToGo:
    @pytest.mark.parametrize("start", ["next", "current"])
    @pytest.mark.parametrize("length_norm", [True, False])
    @pytest.mark.parametrize("gamma", [1.0, 0.95, 0.5, 0.0])
    @pytest.mark.parametrize("length", [1, 2, 9, 64])
    def test_parity(self, start, length_norm, gamma, length):
        teacher, student, mask = batch(length=length)
        rewards = token_rewards(teacher, student, mask)
        got = rewards_to_go(rewards, mask, gamma=gamma, start=start, length_norm=length_norm)
        close(got, slow_rewards_to_go(rewards, mask, gamma, start, length_norm))

    def test_divisor_is_the_number_of_tokens_summed(self):
        """Four tokens of reward 1: every mean is 1, and after the last token there is nothing."""
        ones, mask = torch.ones(1, 6), torch.tensor([[1, 1, 1, 1, 0, 0]], dtype=torch.bool)
        assert rewards_to_go(ones, mask).tolist() == [[1, 1, 1, 0, 0, 0]]
        assert rewards_to_go(ones, mask, start="current").tolist() == [[1, 1, 1, 1, 0, 0]]
        assert rewards_to_go(ones, mask, length_norm=False).tolist() == [[3, 2, 1, 0, 0, 0]]
        assert rewards_to_go(ones, mask, start="current", length_norm=False).tolist() == [[4, 3, 2, 1, 0, 0]]

    def test_divisor_is_undiscounted(self):
        ones, mask = torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool)
        close(rewards_to_go(ones, mask, gamma=0.5, start="current"), [[1.875 / 4, 1.75 / 3, 1.5 / 2, 1.0]])

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(
        left=st.integers(0, 5),
        right=st.integers(0, 5),
        gamma=st.floats(0, 1),
        start=st.sampled_from(["next", "current"]),
        length_norm=st.booleans(),
    )
    def test_padding_on_either_side_changes_nothing(self, left, right, gamma, start, length_norm):
        teacher, student, mask = batch(dtype=torch.float64)
        rewards = token_rewards(teacher, student, mask)
        options = {"gamma": gamma, "start": start, "length_norm": length_norm}
        expected = rewards_to_go(rewards, mask, **options)
        padded = torch.nn.functional.pad(rewards, (left, right), value=-9.0)
        padded_mask = torch.nn.functional.pad(mask, (left, right))
        got = rewards_to_go(padded, padded_mask, **options)
        close(got[:, left : left + mask.shape[1]], expected, tolerance=1e-12)
        assert not got[~padded_mask].any()

    def test_a_hole_in_the_mask_is_stepped_over(self):
        rewards = torch.tensor([[1.0, 100.0, 2.0, 3.0]])
        mask = torch.tensor([[True, False, True, True]])
        close(rewards_to_go(rewards, mask, gamma=0.5, length_norm=False), [[3.5, 0, 3.0, 0]])

    def test_misspelt_start(self):
        with pytest.raises(ValueError, match="'next' or 'current'"):
            rewards_to_go(torch.ones(1, 1), torch.ones(1, 1), start="later")


class TestWhiten:
    def test_padded_parity(self):
        teacher, student, mask = batch()
        values = rewards_to_go(token_rewards(teacher, student, mask), mask, gamma=0.95, start="current")
        close(whiten(values, mask, mode="padded"), slow_whiten(values.double().tolist(), torch.ones_like(mask)), mask)

    def test_masked_parity(self):
        teacher, student, mask = batch()
        values = token_rewards(teacher, student, mask)
        close(whiten(values, mask), slow_whiten(values.double().tolist(), mask), mask)
        got = whiten(values, mask)[mask]
        assert got.mean().item() == pytest.approx(0, abs=1e-6)
        assert got.var(correction=0).item() == pytest.approx(1, abs=1e-5)

    def test_padding_moves_padded_statistics_alone(self):
        teacher, student, mask = batch()
        values = token_rewards(teacher, student, mask)
        wider, wider_mask = (torch.nn.functional.pad(x, (3, 4)) for x in (values, mask))
        for mode, same in (("masked", True), ("off", True), ("padded", False)):
            inner = whiten(wider, wider_mask, mode=mode)[:, 3:-4]
            assert torch.allclose(inner, whiten(values, mask, mode=mode), atol=1e-6) == same

    def test_off(self):
        teacher, student, mask = batch()
        values = token_rewards(teacher, student, mask)
        assert torch.equal(whiten(values, mask, mode="off"), values)

    @pytest.mark.parametrize("mode", ["masked", "padded"])
    @pytest.mark.parametrize("in_place", [True, False])
    def test_statistics_over_ranks(self, mode, in_place):
        """Two ranks, one of them without a token, whiten as one does."""
        teacher, student, mask = batch(rows=6)
        mask[4:] = False
        values = token_rewards(teacher, student, mask)
        expected = whiten(values, mask, mode=mode)
        shares = [slice(0, 4), slice(4, 6)]
        moments = []
        for share in shares:
            whiten(values[share], mask[share], mode=mode, all_reduce=lambda m: moments.append(m.clone()))

        def all_reduce(own):
            assert any(torch.equal(own, one) for one in moments)
            if not in_place:
                return sum(moments)
            own.copy_(sum(moments))
            return None

        got = torch.cat([whiten(values[share], mask[share], mode=mode, all_reduce=all_reduce) for share in shares])
        close(got, expected, tolerance=1e-6)

    def test_one_value_or_none(self):
        one = torch.tensor([[True, False]])
        assert whiten(torch.tensor([[3.0, 0.0]]), one).tolist() == [[0.0, 0.0]]
        assert whiten(torch.zeros(1, 2), ~torch.ones(1, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0]]

    def test_large_mean_keeps_its_variance(self):
        values = 1e4 + torch.linspace(-1, 1, 50)[None]
        got = whiten(values, torch.ones(1, 50, dtype=torch.bool))
        assert got.std(correction=0).item() == pytest.approx(1, abs=1e-3)

    def test_misspelt_mode(self):
        with pytest.raises(ValueError, match="'off', 'masked' or 'padded'"):
            whiten(torch.ones(1, 1), torch.ones(1, 1), mode="on")


class TestImportanceWeights:
    @pytest.mark.parametrize("alpha", [0.05, 0.2, 0.7])
    def test_parity(self, alpha):
        teacher, student, _ = batch()
        expected = [
            [math.exp(q) / ((1 - alpha) * math.exp(q) + alpha * math.exp(p)) for p, q in zip(*row, strict=True)]
            for row in zip(teacher.double().tolist(), student.double().tolist(), strict=True)
        ]
        close(importance_weights(student, teacher, alpha=alpha), expected)

    def test_one_where_alpha_is_zero(self):
        teacher, student, _ = batch()
        assert torch.equal(importance_weights(student, teacher, alpha=0.0), torch.ones_like(student))

    @pytest.mark.parametrize("alpha", [0.1, 0.2, 0.3, 0.9])
    def test_one_where_the_models_agree(self, alpha):
        _, student, _ = batch()
        torch.testing.assert_close(importance_weights(student, student, alpha=alpha), torch.ones_like(student))

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        student=st.floats(-1e4, 0),
        teacher=st.floats(-1e4, 0),
        alpha=st.floats(0, 0.99),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    )
    def test_bounds(self, student, teacher, alpha, dtype):
        weight = importance_weights(
            torch.tensor([student], dtype=dtype), torch.tensor([teacher], dtype=dtype), alpha=alpha
        )
        assert (weight > 0).all()
        assert (weight <= torch.tensor(1 / (1 - alpha), dtype=weight.dtype)).all()

    def test_expectation_under_the_mixture_is_one(self):
        q, p = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
        weights = importance_weights(q.log(), p.log(), alpha=0.3)
        assert ((0.7 * q + 0.3 * p) * weights).sum().item() == pytest.approx(1.0)

    @pytest.mark.parametrize("alpha", [-0.1, 1.0, 1.5])
    def test_share_out_of_range(self, alpha):
        with pytest.raises(ValueError, match="below 1"):
            importance_weights(torch.zeros(1), torch.zeros(1), alpha=alpha)


def surrogate_inputs(seed=0, dtype=torch.float64):
    teacher, student, mask = batch(seed, rows=8, dtype=dtype)
    random = torch.Generator().manual_seed(seed + 100)
    logp = (student + 0.3 * torch.randn(student.shape, generator=random)).to(dtype).requires_grad_(True)
    advantages = torch.randn(student.shape, generator=random).to(dtype)
    return logp, student, advantages, importance_weights(student, teacher, alpha=0.2), mask


def inside(mask, *tensors):
    """The tokens that count, joined."""
    return [tensor[mask] for tensor in tensors]


class TestClippedSurrogate:
    @pytest.mark.parametrize("cliprange", [0.2, 0.05, None])
    @pytest.mark.parametrize("clip_sign", ["signed", "unsigned"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_parity(self, cliprange, clip_sign, dtype):
        logp, old, advantages, weights, mask = surrogate_inputs(dtype=dtype)
        total, slopes, held = 0.0, torch.zeros(logp.shape, dtype=torch.float64), 0
        for b, t in mask.nonzero().tolist():
            a, w = advantages[b, t].item(), weights[b, t].item()
            ratio = w * math.exp(logp[b, t].item() - old[b, t].item())
            plain = -a * ratio
            clipped = plain if cliprange is None else -a * min(max(ratio, 1 - cliprange), 1 + cliprange)
            if clip_sign == "unsigned" and cliprange is not None:
                # The smaller ratio, whatever the advantage: only the upper bound ever holds.
                clipped = -a * min(ratio, 1 + cliprange)
                holds = ratio > 1 + cliprange
            else:
                holds = clipped > plain
            total += clipped if holds else plain
            if not holds:
                slopes[b, t] = plain
            else:
                held += 1
        losses, clipped_BT = clipped_surrogate(
            *inside(mask, logp, old, advantages, weights), cliprange=cliprange, clip_sign=clip_sign
        )
        got = losses.sum()
        assert clipped_BT.sum().item() == held
        assert got.item() == pytest.approx(total, abs=PARITY)
        close(torch.autograd.grad(got, logp)[0], slopes)
        assert (held > 3) == (cliprange is not None)

    def test_only_the_new_log_probability_is_differentiated(self):
        logp, old, advantages, weights, _ = surrogate_inputs()
        for constant in (old, advantages, weights):
            constant.requires_grad_(True)
        clipped_surrogate(logp, old, advantages, weights, cliprange=0.2)[0].sum().backward()
        assert logp.grad is not None
        assert old.grad is advantages.grad is weights.grad is None


class TestWholeLoss:
    """Both parts on one padded batch, from log-probabilities and logits to loss and gradient."""

    VOCAB = 7

    def inputs(self):
        random = torch.Generator().manual_seed(3)
        student, teacher = torch.randn(2, 6, 8, self.VOCAB, generator=random, dtype=torch.float64)
        targets = torch.randint(self.VOCAB, (6, 8), generator=random)
        mask = torch.arange(8) < torch.tensor([8, 3, 1, 0, 5, 8])[:, None]
        return student.requires_grad_(True), teacher, targets, mask

    def loss(self, student, teacher, targets, mask, statistics=None):
        def logp(logits):
            return logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)

        new, p = logp(student), logp(teacher)
        old = new.detach() - 0.1
        rewards = token_rewards(p, old, mask)
        weights = importance_weights(old, p, alpha=0.2)
        advantages = whiten(rewards_to_go(rewards, mask), mask, all_reduce=statistics)
        long, _ = clipped_surrogate(*inside(mask, new, old, advantages, weights), cliprange=0.2)
        single = divergence("reverse_kl", student[mask], teacher[mask])
        return long.sum() + (single * weights[mask]).sum()

    def test_single_step_part_parity(self):
        student, teacher, _, mask = self.inputs()
        got = divergence("reverse_kl", student[mask], teacher[mask]).sum()
        q, p = student.softmax(-1).tolist(), teacher.softmax(-1).tolist()
        expected = math.fsum(
            q[b][t][v] * (math.log(q[b][t][v]) - math.log(p[b][t][v]))
            for b, t in mask.nonzero().tolist()
            for v in range(self.VOCAB)
        )
        assert got.item() == pytest.approx(expected, abs=PARITY)

    def test_padding_order_and_split_change_nothing(self):
        student, teacher, targets, mask = self.inputs()
        whole = self.loss(student, teacher, targets, mask)
        gradient = torch.autograd.grad(whole, student)[0]

        def pad(x, left, right):
            spec = (0, 0, left, right) if x.dim() == 3 else (left, right)
            return torch.nn.functional.pad(x, spec)

        padded = [pad(x, 2, 3) for x in (student, teacher, targets, mask)]
        got = self.loss(*padded)
        close(got, whole, tolerance=1e-10)
        close(torch.autograd.grad(got, student)[0], gradient, tolerance=1e-10)

        order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
        got = self.loss(*(x[order] for x in (student, teacher, targets, mask)))
        close(got, whole, tolerance=1e-10)
        close(torch.autograd.grad(got, student)[0], gradient, tolerance=1e-10)

        # Micro-batches share the statistics of the whole step, as ranks do.
        shares = [slice(0, 1), slice(1, 4), slice(4, 6)]
        moments = []
        for share in shares:
            self.loss(*(x[share] for x in (student, teacher, targets, mask)), lambda m: moments.append(m.clone()))
        parts = [
            self.loss(*(x[share] for x in (student, teacher, targets, mask)), lambda m: sum(moments))
            for share in shares
        ]
        close(sum(parts), whole, tolerance=1e-10)
        close(torch.autograd.grad(sum(parts), student)[0], gradient, tolerance=1e-10)
