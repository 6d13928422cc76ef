from __future__ import annotations

import random
import unicodedata

import pytest
from rouge_score.rouge_scorer import RougeScorer

from minillm_core.evaluate.rouge import (
    TextScores,
    exact_match,
    longest_common_subsequence,
    rouge_l,
    score_texts,
    words,
)


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

    @pytest.mark.parametrize("tokenizer", ["unicode", "paper"])
    def test_is_that_of_rouge_score_for_english(self, tokenizer) -> None:
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        draw = random.Random(5)
        pieces = ["the", "Walking", "dogs", "don't", "3.14", "well-known", "x_1", "2nd", "!", "running", "a", "\n"]
        for _ in range(300):
            first, second = (" ".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(2))
            if words(first) and words(second):
                expected = 100 * scorer.score(first, second)["rougeL"].fmeasure
                assert rouge_l(second, [first], tokenizer) == expected

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("河边的iPhone 15手机", ["河", "边", "的", "iphon", "15", "手", "机"]),
            ("カタカナとひらがな", list("カタカナとひらがな")),
            ("ｶﾞｰﾃﾞﾝ", list("ガーデン")),
            ("ที่นี่", ["ที่", "นี่"]),
            ("ລາວ", list("ລາວ")),
            ("ភាសា", ["ភា", "សា"]),
            ("မြန်မာ", ["မြ", "န်", "မာ"]),
            ("Пекарь чинит фонарь.", ["пекарь", "чинит", "фонарь"]),
            ("Straße, naïve café", ["straße", "naïve", "café"]),
            ("안녕하세요 세계", ["안녕하세요", "세계"]),
            ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
            ("می‌خواهم", ["میخواهم"]),
            ("Ａ１", ["a1"]),
        ],
    )
    def test_words_of_every_script(self, text: str, found: list[str]) -> None:
        assert words(text) == [unicodedata.normalize("NFKC", word) for word in found]
        assert rouge_l(text, [text]) == pytest.approx(100.0)

    def test_a_reference_without_words_is_compared_by_its_characters(self) -> None:
        assert rouge_l("+", ["+"]) == 100.0
        assert rouge_l("-", ["+"]) == 0.0
        assert rouge_l("👍🎉", ["👍"]) == pytest.approx(200 / 3)
        assert rouge_l("", [""]) == 100.0
        assert rouge_l("text", [""]) == 0.0

    def test_long_texts_are_no_table(self) -> None:
        reference, answer = "word other " * 150_000, "other word " * 100
        assert longest_common_subsequence(reference.split(), answer.split()) == 200
        assert rouge_l(answer, [reference]) > 0

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
            ("“yes”", "yes", True),
            ("东京。", "东京", True),
            ("-", "+", False),
            ("", "...", False),
        ],
    )
    def test_ignores_case_punctuation_and_spacing(self, answer: str, reference: str, same: bool) -> None:
        assert exact_match(answer, [reference]) is same

    def test_of_the_paper_leaves_ascii_punctuation_aside(self) -> None:
        assert not exact_match("“yes”", ["yes"], "paper")
        assert exact_match("", ["..."], "paper")

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
