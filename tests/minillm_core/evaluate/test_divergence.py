from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel

from minillm_core.evaluate.divergence import Divergences, measure_divergences

VOCAB = 11
PROMPTS = [[3, 4, 5], [6], [2, 1, 2]]
RESPONSES = [[5, 6, 1], [1], [9, 9, 10, 10]]


def slow(student: PreTrainedModel, teacher: PreTrainedModel, temperature: float) -> tuple[float, float]:
    """Reverse and forward KL summed over the responses' tokens, by plain loops."""
    reverse = forward = 0.0
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        for place in range(len(response)):
            ids = torch.tensor([prompt + response[:place]])
            with torch.no_grad():
                q = torch.log_softmax(student(ids).logits[0, -1, :VOCAB].double() / temperature, dim=-1).tolist()
                p = torch.log_softmax(teacher(ids).logits[0, -1, :VOCAB].double() / temperature, dim=-1).tolist()
            reverse += sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
            forward += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    return reverse, forward


class TestMeasureDivergences:
    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    def test_equals_plain_loops(self, student: PreTrainedModel, teacher: PreTrainedModel, temperature: float) -> None:
        found = measure_divergences(student, teacher, PROMPTS, RESPONSES, vocab=VOCAB, temperature=temperature)
        reverse, forward = slow(student, teacher, temperature)
        assert found.tokens == 8
        assert found.reverse_kl == pytest.approx(reverse, rel=1e-4)
        assert found.forward_kl == pytest.approx(forward, rel=1e-4)
        assert abs(reverse - forward) > 1e-2, "the case tells the directions apart"
        assert found.values("samples")["reverse_kl_samples"] == pytest.approx(reverse / 8, rel=1e-4)

    def test_is_0_for_the_teacher_itself(self, teacher: PreTrainedModel) -> None:
        found = measure_divergences(teacher, teacher, PROMPTS, RESPONSES, vocab=VOCAB)
        assert found.reverse_kl == pytest.approx(0.0, abs=1e-5)
        assert found.forward_kl == pytest.approx(0.0, abs=1e-5)

    def test_shares_add_up(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        whole = measure_divergences(student, teacher, PROMPTS, RESPONSES, vocab=VOCAB).values("dataset")
        shares = [
            measure_divergences(student, teacher, PROMPTS[a:b], RESPONSES[a:b], vocab=VOCAB)
            for a, b in ((0, 1), (1, 1), (1, 3))
        ]
        assert Divergences.merged(shares).values("dataset") == pytest.approx(whole, rel=1e-5)

    def test_no_tokens_no_values(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        assert measure_divergences(student, teacher, [[3]], [[]]).values("dataset") == {}
