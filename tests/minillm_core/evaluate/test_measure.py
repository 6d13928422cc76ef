from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from minillm_core.data.dataset import TokenizedRow
from minillm_core.evaluate.calibration import LabelledPrompt, LabelSet
from minillm_core.evaluate.lm_loss import lm_loss
from minillm_core.evaluate.measure import Measured, Measurement, Subject
from minillm_core.rollout.decoder import make_decoder
from minillm_core.spec import EvaluationSpec
from minillm_core.train.distributed import Ranks
from minillm_core.train.rollouts import Sampling

VOCAB = 11
EOS = 1
PROMPTS = [[3, 4, 5], [6], [2, 7, 3, 8, 9], [7, 8], [4, 2]]
RESPONSES = [[2, 4, EOS], [9, EOS], [10, EOS], [6, 4, 7, 8, 2, EOS], [3, EOS]]
ALL = ["rouge_l", "exposure_bias", "calibration", "diversity", "divergence", "lm_loss"]


class OneOfSeveral(Ranks):
    """One of several ranks in this process: ``gather`` records what it is given and answers with what ``others`` gave.

    Two passes over the same deterministic work make the collective: the first fills the record.
    """

    def __init__(self, rank: int, world: int, record: dict[int, list[Any]]) -> None:
        super().__init__(rank, world, torch.device("cpu"))
        self._record = record
        self._calls = 0
        self._given: list[Any] = []

    def gather(self, value: Any) -> list[Any]:
        place, self._calls = self._calls, self._calls + 1
        self._given.append(value)
        known = [self._record.get(rank) for rank in range(self.world)]
        return [value if given is None or rank == self.rank else given[place] for rank, given in enumerate(known)]

    def finish(self) -> None:
        self._record[self.rank] = self._given


def measurement(tokenizer: PreTrainedTokenizerFast, ranks: Ranks, **spec: Any) -> Measurement:
    rows = [
        TokenizedRow(prompt, response, "", tokenizer.decode(response, skip_special_tokens=True), False)
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    labels = LabelSet([LabelledPrompt(prompt, 0) for prompt in PROMPTS], ["yes", "no"], [[9], [10]])
    sampling = Sampling(eos_ids=[EOS], vocab=VOCAB, max_new_tokens=6, batch_rows=3)
    settings = EvaluationSpec.model_validate({"metrics": ALL, "seeds": [10, 20], "samples": 3} | spec)
    return Measurement(settings, rows, tokenizer, sampling, 64, ranks, labels)


def alone() -> Ranks:
    return Ranks(0, 1, torch.device("cpu"))


def subject(model: PreTrainedModel) -> Subject:
    return Subject(model, make_decoder(model))


def measured(
    student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: int, **spec: Any
) -> Sequence[Measured]:
    """What every one of ``world`` ranks finds."""
    record: dict[int, list[Any]] = {}
    found: list[Measured] = []
    for last in (False, True):
        for rank in range(world):
            ranks = OneOfSeveral(rank, world, record)
            result = measurement(tokenizer, ranks, **spec).measure(subject(student), make_decoder(teacher))
            ranks.finish()
            if last:
                found.append(result)
    return found


class TestMeasure:
    def test_takes_every_metric_of_the_spec(
        self, student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        announced: list[str] = []
        whole = measurement(tokenizer, alone())
        found = whole.measure(subject(student), make_decoder(teacher), announced.append)
        assert {"rouge_l", "exact_match", "accuracy", "ece_10", "distinct_1", "repetition_4", "lm_loss"} <= set(
            found.values
        )
        assert {"reverse_kl_gold", "forward_kl_samples", "exposure_bias", "exposure_bias_length"} <= set(found.values)
        assert found.values["lm_loss"] == pytest.approx(lm_loss(student, whole.rows, vocab=VOCAB).values()["lm_loss"])
        assert len(found.details["rouge_l_by_seed"]) == 2
        assert found.values["rouge_l"] == pytest.approx(sum(found.details["rouge_l_by_seed"]) / 2)
        assert found.details["exposure_bias"]["samples"] == 2 * len(PROMPTS)
        assert len(found.texts) == 3
        assert announced == ["answers", "lm_loss", "calibration", "divergence", "exposure_bias"]
        json.dumps(vars(found), allow_nan=False)

    def test_compares_the_teacher_with_nothing(
        self, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        found = measurement(tokenizer, alone()).measure(subject(teacher), None)
        assert not [name for name in found.values if "kl" in name or name.startswith("exposure")]
        assert "rouge_l" in found.values

    def test_only_what_is_asked_for(
        self, student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        found = measurement(tokenizer, alone(), metrics=["lm_loss"]).measure(subject(student), make_decoder(teacher))
        assert set(found.values) == {"lm_loss"}

    @pytest.mark.parametrize("decoding", ["greedy", "sample"])
    @pytest.mark.parametrize("world", [2, 7])
    def test_ranks_together_find_what_one_finds(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        world: int,
        decoding: str,
    ) -> None:
        """Seven ranks for five rows: two have none."""
        (one,) = measured(student, teacher, tokenizer, 1, decoding=decoding)
        for found in measured(student, teacher, tokenizer, world, decoding=decoding):
            assert found.values == pytest.approx(one.values, rel=1e-4, abs=1e-6)
            assert found.texts == one.texts
            assert found.details["exposure_bias"]["prompts"] == len(PROMPTS)
            assert found.details["exposure_bias"]["samples"] == 2 * len(PROMPTS)

    def test_forbids_repeats_where_asked(
        self, unsure: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        found = measurement(tokenizer, alone(), metrics=["diversity"], no_repeat_ngram_size=2).measure(
            subject(unsure), make_decoder(teacher)
        )
        assert found.values["repetition_4"] == 0.0
