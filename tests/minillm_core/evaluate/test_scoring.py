from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from minillm_core.data.dataset import TokenizedRow
from minillm_core.evaluate.lm_loss import LmLoss, lm_loss
from minillm_core.evaluate.scoring import evaluating, token_log_probs, token_values

VOCAB = 11
PROMPTS = [[3, 4, 5], [6], [2, 1, 2, 1, 2], [7, 8]]
RESPONSES = [[5, 6, 1], [1], [], [9, 9, 9, 9, 9, 10]]


def one_by_one(model: PreTrainedModel, prompt: list[int], response: list[int], vocab: int) -> torch.Tensor:
    """Log-probabilities from one whole forward pass for each token."""
    found = []
    for place, token in enumerate(response):
        logits_V = model(torch.tensor([[*prompt, *response[:place]]])).logits[0, -1, :vocab].double()
        found.append(torch.log_softmax(logits_V, dim=-1)[token])
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)


class TestTokenLogProbs:
    @pytest.mark.parametrize("batch_tokens", [16, 1000])
    def test_equals_a_forward_pass_for_each_token(self, student: PreTrainedModel, batch_tokens: int) -> None:
        found = token_log_probs(student, PROMPTS, RESPONSES, vocab=VOCAB, batch_tokens=batch_tokens)
        for prompt, response, logp_L in zip(PROMPTS, RESPONSES, found, strict=True):
            with torch.no_grad():
                expected_L = one_by_one(student, prompt, response, VOCAB)
            torch.testing.assert_close(logp_L, expected_L, atol=1e-5, rtol=1e-5)

    def test_the_padding_of_the_head_gets_no_probability(self, student: PreTrainedModel) -> None:
        def mass(logits: tuple[torch.Tensor, ...], tokens_N: torch.Tensor) -> torch.Tensor:
            assert logits[0].shape == (len(tokens_N), VOCAB)
            return torch.softmax(logits[0], dim=-1).sum(dim=-1, keepdim=True)

        for mass_L1 in token_values(mass, [student], PROMPTS, RESPONSES, vocab=VOCAB):
            torch.testing.assert_close(mass_L1, torch.ones_like(mass_L1), atol=1e-6, rtol=0)

    def test_a_limit_on_logits_changes_nothing(self, student: PreTrainedModel) -> None:
        def logits_of(logits: tuple[torch.Tensor, ...], tokens_N: torch.Tensor) -> torch.Tensor:
            sizes.append(len(tokens_N))
            return logits[0]

        sizes: list[int] = []
        whole = token_values(logits_of, [student], PROMPTS, RESPONSES)
        sizes.clear()
        sliced = token_values(logits_of, [student], PROMPTS, RESPONSES, max_logits=16 * 3)
        assert max(sizes) == 3
        for a_LV, b_LV in zip(whole, sliced, strict=True):
            if len(a_LV):
                torch.testing.assert_close(a_LV, b_LV, atol=1e-6, rtol=1e-6)

    def test_refuses_an_empty_prompt(self, student: PreTrainedModel) -> None:
        with pytest.raises(ValueError, match="at least one token"):
            token_log_probs(student, [[]], [[1]])

    def test_no_rows(self, student: PreTrainedModel) -> None:
        assert token_log_probs(student, [], []) == []


class TestEvaluating:
    def test_gives_the_mode_back_also_after_an_error(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        student.train()
        try:
            with pytest.raises(KeyError), evaluating(student, teacher):
                assert not student.training
                assert not torch.is_grad_enabled()
                raise KeyError
            assert student.training
            assert not teacher.training
        finally:
            student.eval()


class TestLmLoss:
    def rows(self) -> list[TokenizedRow]:
        return [
            TokenizedRow(prompt, response, "", "", False) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
        ]

    def test_is_the_mean_over_rows_of_the_mean_over_tokens(self, student: PreTrainedModel) -> None:
        with torch.no_grad():
            losses = [
                -one_by_one(student, prompt, response, VOCAB).mean()
                for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
                if response
            ]
        found = lm_loss(student, self.rows(), vocab=VOCAB)
        assert found.values()["lm_loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
        assert (found.rows, found.tokens) == (3, 10)

    def test_shares_add_up(self, student: PreTrainedModel) -> None:
        rows = self.rows()
        shares = [lm_loss(student, rows[:1]), lm_loss(student, []), lm_loss(student, rows[1:])]
        assert LmLoss.merged(shares).values() == pytest.approx(lm_loss(student, rows).values())

    def test_nothing_for_no_rows(self, student: PreTrainedModel) -> None:
        assert lm_loss(student, []).values() == {}
