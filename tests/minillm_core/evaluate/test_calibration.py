from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from minillm_core.data.dataset import TokenizedRow
from minillm_core.errors import UserError
from minillm_core.evaluate.calibration import (
    Calibration,
    LabelledPrompt,
    LabelSet,
    encode_labels,
    expected_calibration_error,
    label_probabilities,
    labels_among,
    measure_calibration,
    read_calibration_file,
)

VOCAB = 11


class TestExpectedCalibrationError:
    def test_of_a_sure_model_is_its_error_rate(self) -> None:
        assert expected_calibration_error([1.0] * 4, [True, True, True, False], 10) == pytest.approx(0.25)

    def test_is_0_where_confidence_is_accuracy(self) -> None:
        assert expected_calibration_error([0.75] * 4, [True, True, True, False], 10) == pytest.approx(0.0)

    def test_weighs_bins_by_their_rows(self) -> None:
        # (0.5, 0.6]: confidence 0.6, 0.55, accuracy 1/2, gap 0.075; (0.9, 1]: 0.95, accuracy 0, gap 0.95
        error = expected_calibration_error([0.6, 0.55, 0.95], [True, False, False], 10)
        assert error == pytest.approx((2 * 0.075 + 0.95) / 3)

    def test_the_upper_edge_belongs_to_its_bin(self) -> None:
        # With two bins 0.5 lies in the lower one, 0.51 in the upper: errors do not cancel.
        assert expected_calibration_error([0.5, 0.51], [True, False], 2) == pytest.approx((0.5 + 0.51) / 2)
        assert expected_calibration_error([0.5, 0.49], [True, False], 2) == pytest.approx(abs(1 - 0.99) / 2)

    def test_a_confidence_of_0_is_in_the_first_bin(self) -> None:
        assert expected_calibration_error([0.0, 0.05], [False, False], 10) == pytest.approx(0.025)

    def test_refuses_no_rows(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            expected_calibration_error([], [], 10)


class TestLabelProbabilities:
    PROMPTS = ([3, 4], [5, 6, 7, 2], [8])

    def slow(self, model: PreTrainedModel, prompt: list[int], labels: list[list[int]]) -> torch.Tensor:
        scores = []
        for label in labels:
            total = torch.zeros((), dtype=torch.float64)
            for place, token in enumerate(label):
                logits_V = model(torch.tensor([[*prompt, *label[:place]]])).logits[0, -1, :VOCAB].double()
                total = total + torch.log_softmax(logits_V, dim=-1)[token]
            scores.append(total)
        probabilities = torch.stack(scores).exp()
        return probabilities / probabilities.sum()

    @pytest.mark.parametrize("labels", [[[2], [3], [9]], [[2], [3, 4]], [[9, 1], [9, 10, 1]]])
    def test_are_those_of_the_model_restricted_to_the_labels(
        self, student: PreTrainedModel, labels: list[list[int]]
    ) -> None:
        found = label_probabilities(student, self.PROMPTS, labels, vocab=VOCAB)
        with torch.no_grad():
            expected = torch.stack([self.slow(student, list(prompt), labels) for prompt in self.PROMPTS])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


class TestMeasureCalibration:
    def test_confidence_and_accuracy_of_a_toy_model(self, student: PreTrainedModel) -> None:
        prompts = [[3, 4], [5, 6, 7, 2], [8], [4, 4]]
        probabilities = label_probabilities(student, prompts, [[9], [10]], vocab=VOCAB)
        picked = probabilities.argmax(dim=-1).tolist()
        answers = [picked[0], 1 - picked[1], picked[2], picked[3]]
        rows = [LabelledPrompt(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        labelled = LabelSet(rows, ["yes", "no"], [[9], [10]])
        found = measure_calibration(student, labelled, vocab=VOCAB)
        assert found.correct == (True, False, True, True)
        assert found.confidence == pytest.approx(probabilities.max(dim=-1).values.tolist())
        values = found.values()
        assert values["accuracy"] == 75.0
        assert values["ece_15"] == pytest.approx(expected_calibration_error(found.confidence, found.correct, 15))
        shares = [measure_calibration(student, labelled.part(rank, 2), vocab=VOCAB) for rank in range(2)]
        assert Calibration.merged(shares).values() == pytest.approx(values)

    def test_no_rows_no_values(self, student: PreTrainedModel) -> None:
        for label_ids in ([[9], [10]], [[9, 1], [10, 1]]):
            assert measure_calibration(student, LabelSet([], ["yes", "no"], label_ids)).values() == {}


class TestEncodeLabels:
    def test_compares_the_words_alone(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert encode_labels(["yes", "no"], "plain", tokenizer) == [[9], [10]]

    def test_ends_labels_of_which_one_begins_another(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert encode_labels(["good", "good film", "bad"], "plain", tokenizer) == [[2, 1], [2, 4, 1], [3, 1]]

    def test_refuses_labels_that_look_alike(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(UserError, match="same tokens"):
            encode_labels(["unknown", "words"], "plain", tokenizer)


class TestReadCalibrationFile:
    def write(self, path: Path, rows: list[object]) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def test_labels_are_the_different_answers(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [{"instruction": "the film was good", "answer": word} for word in ("yes", "no", " yes")]
        found = read_calibration_file(self.write(tmp_path / "rows.jsonl", rows), "plain", tokenizer, 6)
        assert found.labels == ["no", "yes"]
        assert found.label_ids == [[10], [9]]
        assert [row.label for row in found.rows] == [1, 0, 1]
        assert found.rows[0].prompt_ids == [6, 4, 7, 2]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"instruction": "x", "answer": "yes"}] * 2, "answers of all 2 rows are the same"),
            ([{"instruction": "x", "answer": "yes"}, {"instruction": "x"}], "line 2"),
            ([], "no rows"),
            ([{"instruction": "x", "answer": "yes"}, {"instruction": "a " * 7, "answer": "no"}], "line 2: .* 7 tokens"),
        ],
    )
    def test_refuses_what_cannot_be_classified(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rows: list[object], message: str
    ) -> None:
        with pytest.raises(UserError, match=message) as caught:
            read_calibration_file(self.write(tmp_path / "rows.jsonl", rows), "plain", tokenizer, 6)
        assert caught.value.code == "dataset_invalid"
        assert caught.value.param == "/evaluation/calibration_file"


class TestLabelsAmong:
    def rows(self, answers: list[str]) -> list[TokenizedRow]:
        return [TokenizedRow([3, place % 8], [9, 1], "", answer, False) for place, answer in enumerate(answers)]

    def test_takes_short_answers_that_recur(self, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = self.rows(["yes", "no"] * 4 + ["very", "the film was very good"])
        found = labels_among(rows, "plain", tokenizer)
        assert found is not None
        assert found.labels == ["no", "yes"]
        assert [row.label for row in found.rows] == [1, 0] * 4

    @pytest.mark.parametrize("answers", [["yes"] * 20, ["yes", "no"] * 3, ["the film was very good"] * 20, []])
    def test_is_none_where_nothing_is_classified(self, tokenizer: PreTrainedTokenizerFast, answers: list[str]) -> None:
        assert labels_among(self.rows(answers), "plain", tokenizer) is None
