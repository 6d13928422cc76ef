from __future__ import annotations

import pytest

from minillm_core.evaluate.rouge import TextScores, exact_match, rouge_l, score_texts


class TestRougeL:
    def test_equal_texts_score_100(self) -> None:
        assert rouge_l("The cat sat.", ["the CAT sat"]) == pytest.approx(100.0)

    def test_is_the_f_measure_of_the_longest_common_subsequence(self) -> None:
        # common subsequence "a c e" of 3 words: precision 3/4, recall 3/5, F = 2 * 3 / (4 + 5)
        assert rouge_l("a c x e", ["a b c d e"]) == pytest.approx(100 * 6 / 9)

    def test_word_order_matters(self) -> None:
        assert rouge_l("three two one", ["one two three"]) == pytest.approx(100 / 3)

    def test_words_are_stemmed(self) -> None:
        assert rouge_l("walking dogs", ["walked dog"]) == pytest.approx(100.0)

    def test_the_best_reference_counts(self) -> None:
        assert rouge_l("blue", ["red", "blue", "green"]) == pytest.approx(100.0)

    @pytest.mark.parametrize("answer", ["", "   ", "!?"])
    def test_an_answer_without_words_scores_0(self, answer: str) -> None:
        assert rouge_l(answer, ["something"]) == 0.0

    def test_refuses_a_row_without_reference(self) -> None:
        with pytest.raises(ValueError, match="at least one reference"):
            rouge_l("text", [])


class TestExactMatch:
    @pytest.mark.parametrize(
        ("answer", "reference", "same"),
        [
            ("Yes!", " yes", True),
            ("well-known  fact", "wellknown fact", True),
            ("the answer", "answer", False),
            ("“yes”", "yes", False),
            ("", "...", True),
        ],
    )
    def test_ignores_case_ascii_punctuation_and_spacing(self, answer: str, reference: str, same: bool) -> None:
        assert exact_match(answer, [reference]) is same

    def test_any_reference_will_do(self) -> None:
        assert exact_match("two", ["2", "Two."])


class TestScoreTexts:
    def test_is_the_mean_over_rows(self) -> None:
        scores = score_texts(["a c x e", "nothing"], [["a b c d e"], ["nothing"]])
        assert scores.values() == pytest.approx({"rouge_l": (100 * 6 / 9 + 100) / 2, "exact_match": 50.0})

    def test_shares_of_the_rows_add_up(self) -> None:
        answers, references = ["a b", "c", "d e f"], [["a"], ["c"], ["d f"]]
        shares = [score_texts(answers[:1], references[:1]), score_texts(answers[1:], references[1:])]
        assert TextScores.merged(shares).values() == pytest.approx(score_texts(answers, references).values())

    def test_nothing_for_no_rows(self) -> None:
        assert score_texts([], []).values() == {}

    def test_refuses_lists_of_different_length(self) -> None:
        with pytest.raises(ValueError):
            score_texts(["a", "b"], [["a"]])
