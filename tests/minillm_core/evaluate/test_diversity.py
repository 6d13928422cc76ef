from __future__ import annotations

import pytest

from minillm_core.evaluate.diversity import Diversity, measure_diversity

EOS = 9


class TestMeasureDiversity:
    def test_distinct_n_counts_over_all_responses(self) -> None:
        # unigrams 1 2 1 2 1 and 1 2: 2 different of 7; bigrams 12 21 12 21 and 12: 2 of 5;
        # trigrams 121 212 121: 2 of 3; 4-grams 1212 2121: 2 of 2
        values = measure_diversity([[1, 2, 1, 2, 1, EOS], [1, 2, EOS]], [False, False], {EOS}).values()
        assert values["distinct_1"] == pytest.approx(200 / 7)
        assert values["distinct_2"] == pytest.approx(200 / 5)
        assert values["distinct_3"] == pytest.approx(200 / 3)
        assert values["distinct_4"] == pytest.approx(100)

    def test_repetition_counts_within_a_response_only(self) -> None:
        twice = measure_diversity([[1, 2, 3, 4], [1, 2, 3, 4]], [True, True], {EOS}).values()
        assert twice["repetition_4"] == 0.0
        assert twice["distinct_4"] == 50.0
        # 1111 three times: two of three came before
        assert measure_diversity([[1] * 6], [True], {EOS}).values()["repetition_4"] == pytest.approx(2 / 3)

    def test_lengths_leave_the_end_token_out(self) -> None:
        values = measure_diversity([[1, 2, EOS], [1, 2, 3, 4], [EOS]], [False, True, False], {EOS}).values()
        assert values["response_tokens_mean"] == pytest.approx(2.0)
        assert values["response_tokens_median"] == 2.0
        assert values["response_tokens_std"] == pytest.approx((8 / 3) ** 0.5)
        assert values["truncated"] == pytest.approx(1 / 3)

    def test_short_responses_have_no_long_ngrams(self) -> None:
        values = measure_diversity([[1, EOS], [2, EOS]], [False, False], {EOS}).values()
        assert values["distinct_1"] == 100.0
        assert "distinct_2" not in values
        assert "repetition_4" not in values

    def test_no_responses_no_values(self) -> None:
        assert measure_diversity([], [], {EOS}).values() == {}

    def test_refuses_marks_of_another_number(self) -> None:
        with pytest.raises(ValueError, match="2 responses and 1 marks"):
            measure_diversity([[1], [2]], [False], {EOS})

    def test_shares_join(self) -> None:
        responses = [[1, 2, 3, 1, 2], [1, 2, 3, 4, EOS], [4, 4, 4, 4, 4, 4]]
        whole = measure_diversity(responses, [True, False, True], {EOS})
        shares = [
            measure_diversity(responses[:1], [True], {EOS}),
            measure_diversity([], [], {EOS}),
            measure_diversity(responses[1:], [False, True], {EOS}),
        ]
        assert Diversity.merged(shares) == whole
