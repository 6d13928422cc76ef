"""Each kernel against torch in float64: odd widths, gaps between tokens, windows, impossible tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from minillm_core.native import ops
from minillm_core.native.library import load

pytestmark = pytest.mark.skipif(load() is None, reason="no C++ compiler here")

HALF = [pytest.param(torch.float32, 2e-6, id="float32"), pytest.param(torch.bfloat16, 1e-2, id="bfloat16")]
WIDTHS = (1, 7, 16, 33, 576)
LENGTHS = (70, 1, 33, 5, 131)


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=tolerance)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class TestRows:
    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize(("dtype", "tolerance"), HALF)
    @pytest.mark.parametrize("tokens", [1, 5, 400])
    def test_norm(self, width: int, tokens: int, dtype: torch.dtype, tolerance: float) -> None:
        x, weight = torch.randn(tokens, width).to(dtype), torch.randn(width).to(dtype)
        out, scales = ops.norm(x, weight, 1e-5, scales=True)
        assert out.dtype == dtype and scales is not None
        near(out, functional.rms_norm(x.double(), (width,), weight.double(), 1e-5), 4 * tolerance)
        near(scales, (x.double().square().mean(-1) + 1e-5).rsqrt(), 2e-6)
        assert ops.norm(x, weight, 1e-5)[1] is None

    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize("tokens", [1, 5, 400])
    def test_norm_backward(self, width: int, tokens: int) -> None:
        x, weight, grad = torch.randn(tokens, width), torch.randn(width), torch.randn(tokens, width)
        _, scales = ops.norm(x, weight, 1e-5, scales=True)
        assert scales is not None
        leaves = x.double().requires_grad_(), weight.double().requires_grad_()
        functional.rms_norm(leaves[0], (width,), leaves[1], 1e-5).backward(grad.double())
        for found, leaf in zip(ops.norm_backward(x, scales, weight, grad), leaves, strict=True):
            assert leaf.grad is not None
            near(found, leaf.grad, 2e-5)

    @pytest.mark.parametrize("count", [1, 15, 16, 40_001])
    @pytest.mark.parametrize(("dtype", "tolerance"), HALF)
    def test_silu_times(self, count: int, dtype: torch.dtype, tolerance: float) -> None:
        gate, up = (torch.randn(count).mul(20).to(dtype) for _ in range(2))
        expected = functional.silu(gate.double()) * up.double()
        near(ops.silu_times(gate, up, torch.empty_like(gate)), expected, 2 * tolerance)
        assert ops.silu_times(gate, up, gate) is gate
        near(gate, expected, 2 * tolerance)

    @pytest.mark.parametrize("count", [1, 15, 40_001])
    def test_silu_times_backward(self, count: int) -> None:
        gate, up, grad = torch.randn(count) * 5, torch.randn(count), torch.randn(count)
        leaves = gate.double().requires_grad_(), up.double().requires_grad_()
        product = functional.silu(leaves[0]) * leaves[1]
        product.backward(grad.double())
        ops.silu_times_backward(gate, up, grad)
        for found, expected in ((gate, leaves[0].grad), (up, leaves[1].grad), (grad, product.detach())):
            assert expected is not None
            near(found, expected, 5e-6)

    @pytest.mark.parametrize("width", [2, 16, 64, 80])
    def test_rotations_of_halves(self, width: int) -> None:
        whole = torch.randn(9, 5, width)
        x = whole[:, 1:4]
        angle = torch.randn(9, width // 2)
        cosine, sine = (torch.cat((part, part), dim=1) for part in (angle.cos(), angle.sin()))
        before, outside = x.clone(), whole[:, [0, 4]].clone()
        ops.rotate_halves(x, cosine, sine)
        a, b = before.chunk(2, dim=-1)
        near(x, before * cosine.unsqueeze(1) + torch.cat((-b, a), dim=-1) * sine.unsqueeze(1), 1e-6)
        ops.rotate_halves(x, cosine, sine, back=True)
        near(x, before, 1e-6)
        assert torch.equal(whole[:, [0, 4]], outside)

    @pytest.mark.parametrize("normed", [True, False])
    @pytest.mark.parametrize(("dtype", "tolerance"), HALF)
    def test_rotations_of_pairs(self, normed: bool, dtype: torch.dtype, tolerance: float) -> None:
        heads, shared, width = 4, 2, 12
        qkv = torch.randn(7, heads + 2 * shared, width).to(dtype)
        angles = torch.randn(20, width // 2)
        positions = torch.randint(0, 20, (7,))
        norms = [torch.randn(width).to(dtype) if normed else None for _ in range(2)]
        given = qkv.double()
        out = ops.rotate_pairs(qkv, torch.polar(torch.ones_like(angles), angles), positions, *norms, 1e-5, shared)
        assert out.dtype == torch.float32
        near(out[:, heads + shared :], given[:, heads + shared :], 0.0)
        for part, norm in ((slice(0, heads), norms[0]), (slice(heads, heads + shared), norms[1])):
            x = given[:, part]
            if norm is not None:
                x = functional.rms_norm(x, (width,), norm.double(), 1e-5)
            turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(
                torch.ones(7, 1, width // 2, dtype=torch.float64), angles[positions].double().unsqueeze(1)
            )
            near(out[:, part], torch.view_as_real(turned).flatten(-2), 2e-6)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The mixed values and the logarithm of the sums, row by row in float64."""
    out, sums = [], []
    for query, key, value in zip(*(part.split(list(lengths)) for part in (q, k, v)), strict=True):
        length, group = query.shape[0], q.shape[1] // k.shape[1]
        key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
        scores = torch.einsum("ihd,jhd->hij", query, key) * scale
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        if window is not None:
            seen = seen.triu(1 - window)
        scores = scores.masked_fill(~seen, -torch.inf)
        out.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), value))
        sums.append(scores.logsumexp(-1).T)
    return torch.cat(out), torch.cat(sums)


class TestRowsAttention:
    @pytest.mark.parametrize("window", [None, 1, 7, 64])
    @pytest.mark.parametrize(("heads", "shared", "width"), [(9, 3, 64), (4, 4, 16), (2, 1, 20)])
    def test_value_and_gradient(self, window: int | None, heads: int, shared: int, width: int) -> None:
        tokens, scale = sum(LENGTHS), 0.3
        joined = torch.randn(tokens, heads + 2 * shared, width)
        q, k, v = joined.split([heads, shared, shared], dim=1)
        offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
        leaves = [part.double().requires_grad_() for part in (q, k, v)]
        expected, sums = dense_attention(*leaves, LENGTHS, window, scale)  # type: ignore[arg-type]
        out, log_sums = ops.rows_attention(q, k, v, offsets, scale=scale, window=window, log_sums=True)
        assert log_sums is not None
        near(out, expected.detach(), 1e-5)
        near(log_sums, sums.detach(), 1e-5)
        grad = torch.randn_like(out)
        expected.backward(grad.double())
        found = ops.rows_attention_backward(q, k, v, out, log_sums, grad, offsets, scale=scale, window=window)
        for mine, leaf in zip(found, leaves, strict=True):
            assert leaf.grad is not None
            near(mine, leaf.grad, 5e-5)

    def test_rows_of_no_tokens(self) -> None:
        q, k, v = torch.randn(3, 2, 8), torch.randn(3, 1, 8), torch.randn(3, 1, 8)
        offsets = torch.tensor([0, 0, 3, 3])
        out, sums = ops.rows_attention(q, k, v, offsets, scale=1.0, window=None, log_sums=True)
        assert sums is not None
        near(out, dense_attention(q.double(), k.double(), v.double(), [3], None, 1.0)[0], 1e-5)
        by_q, _, _ = ops.rows_attention_backward(q, k, v, out, sums, out, offsets, scale=1.0, window=None)
        assert by_q.isfinite().all()


class TestDecodeAttention:
    @pytest.mark.parametrize("window", [None, 3])
    @pytest.mark.parametrize("normed", [True, False])
    @pytest.mark.parametrize(("dtype", "tolerance"), HALF)
    def test_a_step_is_attention_over_the_cache(
        self, window: int | None, normed: bool, dtype: torch.dtype, tolerance: float
    ) -> None:
        rows, heads, shared, width, columns, column = 5, 6, 2, 20, 24, 17
        keys, values = (torch.randn(rows, shared, columns, width).to(dtype) for _ in range(2))
        padding = torch.tensor([[0], [4], [17], [16], [9]])
        angles = torch.randn(columns, width // 2)
        table = torch.polar(torch.ones_like(angles), angles)
        norms = [torch.randn(width).to(dtype) if normed else None for _ in range(2)]
        qkv = torch.randn(rows, heads + 2 * shared, width).to(dtype)
        turned = ops.rotate_pairs(qkv.clone(), table, (column - padding).squeeze(1), *norms, 1e-5, shared)
        kept = keys.clone(), values.clone()
        out = ops.decode_attention(qkv, table, *norms, 1e-5, padding, keys, values, column=column, window=window)
        assert torch.equal(keys[:, :, column], turned[:, heads : heads + shared].to(dtype))
        assert torch.equal(values[:, :, column], qkv[:, heads + shared :])
        others = [place for place in range(columns) if place != column]
        assert torch.equal(keys[:, :, others], kept[0][:, :, others])
        assert torch.equal(values[:, :, others], kept[1][:, :, others])
        for row in range(rows):
            low = int(padding[row]) if window is None else max(int(padding[row]), column + 1 - window)
            key, value = (
                part[row, :, low : column + 1].double().repeat_interleave(heads // shared, dim=0)
                for part in (keys, values)
            )
            weight = (torch.einsum("hd,hjd->hj", turned[row, :heads].double(), key) * width**-0.5).softmax(-1)
            near(out[row].view(heads, width), torch.einsum("hj,hjd->hd", weight, value), 5 * tolerance)

    @pytest.mark.parametrize("window", [None, 3])
    @pytest.mark.parametrize(("dtype", "tolerance"), HALF)
    def test_a_chunk_is_its_tokens_one_after_the_other(
        self, window: int | None, dtype: torch.dtype, tolerance: float
    ) -> None:
        """Rows may have any number of new tokens, none too."""
        lengths, heads, shared, width, columns, column = [3, 0, 5, 1], 6, 2, 20, 24, 11
        keys, values = (torch.randn(len(lengths), shared, columns, width).to(dtype) for _ in range(2))
        padding = torch.tensor([[0], [4], [11], [9]])
        table = torch.polar(torch.ones(columns, width // 2), torch.randn(columns, width // 2))
        norms = [torch.randn(width).to(dtype) for _ in range(2)]
        qkv = torch.randn(sum(lengths), heads + 2 * shared, width).to(dtype)
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        old = keys.clone(), values.clone()
        out = ops.decode_attention(
            qkv, table, *norms, 1e-5, padding, keys, values, column=column, window=window, offsets_B1=offsets
        )
        for row, length in enumerate(lengths):
            alone = [part[row : row + 1].clone() for part in old]
            for token in range(length):
                at = int(offsets[row]) + token
                expected = ops.decode_attention(
                    qkv[at : at + 1],
                    table,
                    *norms,
                    1e-5,
                    padding[row : row + 1],
                    *alone,
                    column=column + token,
                    window=window,
                )
                near(out[at : at + 1], expected, tolerance)
            for found, expected in zip((keys, values), alone, strict=True):
                near(found[row], expected[0], 1e-6)


class TestVocabulary:
    @pytest.mark.parametrize("vocab", [1, 15, 256, 1000, 5000])
    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    @pytest.mark.parametrize(("dtype", "tolerance"), HALF)
    def test_log_probabilities(self, vocab: int, temperature: float, dtype: torch.dtype, tolerance: float) -> None:
        logits = torch.randn(6, vocab + 3).mul(4).to(dtype)[:, :vocab]
        tokens = torch.randint(0, vocab, (6,))
        expected = (logits.double() / temperature).log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        near(ops.logp(logits, tokens, temperature), expected, 2e-5)

    def test_draws_follow_the_law(self) -> None:
        logits = (torch.randn(1, 300) * 2).expand(100_000, -1)
        tokens, logp = ops.draw(logits, torch.rand(100_000, dtype=torch.float64), 1.0)
        law = logits[0].double().softmax(-1)
        near(logp[:100], law[tokens[:100]].log(), 1e-5)
        counts = torch.bincount(tokens, minlength=300).double()
        # Sum of (observed - expected)^2 / expected over cells of at least five: 4 deviations above its mean at most.
        likely = law * 100_000 >= 5
        chi = ((counts - law * 100_000).square() / (law * 100_000))[likely].sum()
        freedom = int(likely.sum()) - 1
        assert abs(chi - freedom) < 4 * (2 * freedom) ** 0.5

    @pytest.mark.parametrize("vocab", [1, 13, 300, 5000])
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    @pytest.mark.parametrize("kind", ["reverse", "forward"])
    def test_losses_and_their_gradient(self, vocab: int, temperature: float, kind: str) -> None:
        student, teacher = (torch.randn(4, vocab) * 3 for _ in range(2))
        if vocab > 13:
            # Impossible tokens: for the student, for both. (The other way round the reverse KL is infinite.)
            student[0, :7] = -torch.inf
            teacher[0, 3:5] = -torch.inf
        factor, slope = torch.rand(4), torch.randn(4)
        leaf = student.double().requires_grad_()
        logq, logp = (leaf / temperature).log_softmax(-1), (teacher.double() / temperature).log_softmax(-1)
        possible_q, possible_p = logq > -torch.inf, logp > -torch.inf
        gap = torch.where(possible_q & possible_p, logq - logp, 0.0)
        reverse = (logq.exp() * gap).sum(-1)
        rows = slice(0, None) if kind == "reverse" or vocab <= 13 else slice(1, None)
        forward = -(logp.exp() * gap).sum(-1)
        entropy = -torch.where(possible_q, logq.exp() * logq, 0.0).sum(-1)
        sums = ops.loss_sums(student, teacher, temperature).double()
        largest, mass, own, _, other_mass, found_reverse, found_forward = sums.unbind(1)
        near(largest + mass, (student.double() / temperature).logsumexp(-1), 2e-5)
        near(mass - own, entropy.detach(), 2e-5)
        found = found_reverse - mass + other_mass if kind == "reverse" else found_forward - other_mass + mass
        near(found[rows], (reverse if kind == "reverse" else forward).detach()[rows], 3e-5)

        chosen = (reverse if kind == "reverse" else forward) * factor.double()
        (chosen.sum() + (leaf / temperature).logsumexp(-1).mul(slope.double()).sum()).backward()
        nothing = torch.zeros(4)
        ops.loss_gradient(
            student,
            teacher,
            temperature,
            sums.float(),
            slope,
            factor if kind == "reverse" else nothing,
            factor if kind == "forward" else nothing,
        )
        assert leaf.grad is not None
        near(student[rows], leaf.grad.nan_to_num()[rows], 1e-5)

    def test_equal_models_have_no_divergence_at_all(self) -> None:
        logits = torch.randn(3, 1000) * 5
        sums = ops.loss_sums(logits, logits.clone(), 1.0)
        assert torch.equal(sums[:, 5], torch.zeros(3)) and torch.equal(sums[:, 1], sums[:, 4])


class TestFits:
    def test_only_what_there_are_kernels_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        single, half = torch.empty(1), torch.empty(1, dtype=torch.bfloat16)
        assert ops.fits(single) and ops.fits(half, half=True)
        assert not ops.fits(half) and not ops.fits(single, half)
        assert not ops.fits(torch.empty(1, dtype=torch.float64)) and not ops.fits(torch.empty(1, device="meta"))
        monkeypatch.setattr(ops, "load", lambda: None)
        assert not ops.fits(single)
