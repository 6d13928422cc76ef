from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from minillm_core.evaluate.answers import Answers, answers_without_repeats, decode_texts

VOCAB = 11
EOS = 1
PROMPTS = [[3, 4, 5], [6], [2, 7, 3, 8, 9], [7, 8]] * 6


def has_repeat(tokens: Sequence[int], n: int) -> bool:
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)) < len(grams)


class TestDecodeTexts:
    def test_leaves_special_tokens_and_outer_blanks_out(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert decode_texts(tokenizer, [[6, 4, EOS], [EOS], [], [0, 9]]) == ["the film", "", "", "yes"]


class TestAnswersWithoutRepeats:
    def answers(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **changes: object) -> Answers:
        settings: dict[str, object] = {
            "no_repeat_ngram_size": 2,
            "max_new_tokens": 8,
            "eos_ids": [EOS],
            "seed": 10,
            "batch_rows": 2,
            "vocab": VOCAB,
        }
        return answers_without_repeats(model, tokenizer, PROMPTS, **(settings | changes))  # type: ignore[arg-type]

    def test_no_ngram_twice_prompt_included(self, unsure: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        banned = self.answers(unsure, tokenizer, max_new_tokens=30)
        free = self.answers(unsure, tokenizer, max_new_tokens=30, no_repeat_ngram_size=0)
        assert not any(has_repeat(p + r, 2) for p, r in zip(PROMPTS, banned.response_ids, strict=True))
        assert any(has_repeat(p + r, 2) for p, r in zip(PROMPTS, free.response_ids, strict=True))

    def test_responses_end_at_the_first_end_token(
        self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        found = self.answers(student, tokenizer, no_repeat_ngram_size=3)
        for response, truncated in zip(found.response_ids, found.truncated, strict=True):
            assert EOS not in response[:-1]
            assert truncated is (response[-1] != EOS)
            assert len(response) <= 8
            assert truncated is False or len(response) == 8
            assert max(response) < VOCAB
        assert set(found.truncated) == {True, False}, "the case has both kinds"
        assert found.texts == decode_texts(tokenizer, found.response_ids)

    def test_the_seed_decides_and_the_global_state_stays(
        self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        state = torch.random.get_rng_state()
        first = self.answers(student, tokenizer)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert self.answers(student, tokenizer) == first
        assert self.answers(student, tokenizer, seed=11) != first

    def test_greedy_takes_the_likeliest_token(
        self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        found = self.answers(student, tokenizer, greedy=True, no_repeat_ngram_size=0, max_new_tokens=3)
        for prompt, response in zip(PROMPTS, found.response_ids, strict=True):
            row = list(prompt)
            for token in response:
                with torch.no_grad():
                    assert token == int(student(torch.tensor([row])).logits[0, -1, :VOCAB].argmax())
                row.append(token)

    @pytest.mark.parametrize("batch_rows", [1, 4])
    def test_greedy_answers_do_not_depend_on_the_batch(
        self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_rows: int
    ) -> None:
        settings = {"greedy": True, "no_repeat_ngram_size": 3}
        assert self.answers(student, tokenizer, batch_rows=batch_rows, **settings) == self.answers(
            student, tokenizer, **settings
        )
