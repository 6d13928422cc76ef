from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from minillm_core.evaluate.exposure_bias import ExposureBias, alive_mean, measure_exposure_bias

VOCAB = 11


def slow_kl(student: PreTrainedModel, teacher: PreTrainedModel, prefix: list[int], vocab: int) -> float:
    """KL(teacher || student) of the next token after ``prefix``, one number at a time."""
    with torch.no_grad():
        q = torch.log_softmax(student(torch.tensor([prefix])).logits[0, -1, :vocab].double(), dim=-1).tolist()
        p = torch.log_softmax(teacher(torch.tensor([prefix])).logits[0, -1, :vocab].double(), dim=-1).tolist()
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def slow_curve(student: list[list[list[float]]], teacher: list[list[list[float]]], length: int) -> list[float]:
    """ExAccErr at 1 ... length from divergences [prompt][sample][position], by plain loops."""

    def accumulated(arm: list[list[list[float]]], upto: int) -> float:
        total = 0.0
        for place in range(upto):
            prompts = []
            for samples in arm:
                alive = [sample[place] for sample in samples if len(sample) > place]
                if alive:
                    prompts.append(sum(alive) / len(alive))
            total += sum(prompts) / len(prompts)
        return total

    found = []
    for upto in range(1, length + 1):
        baseline = accumulated(teacher, upto)
        found.append(100 * (accumulated(student, upto) - baseline) / baseline)
    return found


def from_divergences(student: list[list[list[float]]], teacher: list[list[list[float]]]) -> ExposureBias:
    width = max(len(sample) for arm in (student, teacher) for samples in arm for sample in samples)

    def rows(arm: list[list[list[float]]]) -> np.ndarray:
        return np.stack([alive_mean([np.array(sample) for sample in samples], width) for samples in arm])

    return ExposureBias(rows(student), rows(teacher), samples=sum(map(len, student)))


STUDENT = [[[0.1, 0.5, 0.9], [0.1]], [[0.3, 0.2], [0.3, 0.6]]]
TEACHER = [[[0.1, 0.2], [0.1, 0.4, 0.3]], [[0.3, 0.1, 0.2, 0.7], [0.3]]]


class TestCurve:
    def test_a_case_by_hand(self) -> None:
        # Position 1: both 0.2. Position 2: student (0.5 + 0.4) / 2 = 0.45, teacher (0.3 + 0.1) / 2 = 0.2.
        # Position 3: student 0.9 (only the first prompt), teacher (0.3 + 0.2) / 2 = 0.25. No student's sample has 4.
        curve = from_divergences(STUDENT, TEACHER).curve()
        assert curve.error == pytest.approx([0.0, 100 * 0.25 / 0.4, 100 * 0.9 / 0.65])
        assert curve.prompts_student == [2, 2, 1]
        assert curve.prompts_teacher == [2, 2, 2]
        assert curve.samples == 4
        assert curve.length == 3

    def test_equals_plain_loops(self) -> None:
        random = np.random.default_rng(0)

        def arm() -> list[list[list[float]]]:
            return [[random.random(random.integers(1, 9)).tolist() for _ in range(3)] for _ in range(7)]

        student, teacher = arm(), arm()
        curve = from_divergences(student, teacher).curve()
        assert len(curve.error) >= 5
        assert curve.error == pytest.approx(slow_curve(student, teacher, len(curve.error)))

    def test_models_that_agree_have_no_excess(self) -> None:
        zero = [[[0.0, 1e-9, 1e-9]]] * 4
        curve = from_divergences(zero, zero).curve()
        assert curve.error == [0.0, 0.0, 0.0]
        assert curve.values()["exposure_bias"] == 0.0

    def test_is_undefined_where_only_the_baseline_vanishes(self) -> None:
        curve = from_divergences([[[0.0, 0.5]]] * 3, [[[0.0, 0.0]]] * 3).curve()
        assert curve.error == [0.0, None]
        assert curve.values() == {}

    def test_the_report_reads_it_where_half_of_the_prompts_are_alive(self) -> None:
        student = [[[0.2] * 6], [[0.2] * 4], [[0.2] * 2], [[0.2] * 2]]
        teacher = [[[0.1] * 6]] * 4
        curve = from_divergences(student, teacher).curve()
        assert curve.length == 4
        assert curve.values()["exposure_bias_length"] == 4.0
        assert curve.values()["exposure_bias"] == pytest.approx(100.0)

    def test_the_interval_covers_the_truth_about_as_often_as_it_says(self) -> None:
        # Student's divergences have mean 0.15, the teacher's 0.1: the excess is 50 % at every length.
        random = np.random.default_rng(3)
        covered, widths, errors = 0, [], []
        for trial in range(200):
            student_PT, teacher_PT = random.exponential(0.15, (40, 4)), random.exponential(0.1, (40, 4))
            curve = ExposureBias(student_PT, teacher_PT, 40).curve(resamples=300, seed=trial)
            low, high, std, error = curve.low[-1], curve.high[-1], curve.std[-1], curve.error[-1]
            assert low is not None and high is not None and std is not None and error is not None
            covered += low <= 50.0 <= high
            widths.append(std)
            errors.append(error)
        assert 0.88 <= covered / 200 <= 0.99
        assert np.mean(widths) == pytest.approx(np.std(errors, ddof=1), rel=0.2)

    def test_the_interval_holds_the_middle_95_percent(self) -> None:
        # Little noise makes the ratio nearly normal: 1.96 standard errors to either side.
        random = np.random.default_rng(4)
        bias = ExposureBias(0.15 + 0.01 * random.standard_normal((200, 1)), np.full((200, 1), 0.1), 200)
        curve = bias.curve(resamples=20_000)
        (low,), (high,), (std,), (error,) = curve.low, curve.high, curve.std, curve.error
        assert low is not None and high is not None and std is not None and error is not None
        assert (error - low) / std == pytest.approx(1.96, rel=0.05)
        assert (high - error) / std == pytest.approx(1.96, rel=0.05)

    def test_the_interval_is_the_same_every_time(self) -> None:
        bias = from_divergences(STUDENT, TEACHER)
        assert bias.curve() == bias.curve()

    def test_details_are_json_without_nan(self) -> None:
        json.dumps(from_divergences(STUDENT, TEACHER).curve().details(), allow_nan=False)

    def test_shares_of_different_width_join(self) -> None:
        whole = from_divergences(STUDENT, TEACHER)
        shares = [from_divergences(STUDENT[:1], TEACHER[:1]), from_divergences(STUDENT[1:], TEACHER[1:])]
        assert ExposureBias.merged([shares[0], ExposureBias.merged([]), shares[1]]).curve() == whole.curve()


class TestMeasure:
    PROMPTS = ([3, 4, 5], [6, 7])
    STUDENT_SAMPLES = ([[2, 3, 1], [4, 1]], [[5, 5, 5, 5], [1]])
    TEACHER_SAMPLES = ([[1], [2, 2, 2, 1]], [[8, 9, 1], [3, 3, 3, 3]])

    def test_equals_plain_loops_over_prefixes(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        def divergences(samples: tuple[list[list[int]], ...]) -> list[list[list[float]]]:
            return [
                [
                    [slow_kl(student, teacher, prompt + sample[:place], VOCAB) for place in range(len(sample))]
                    for sample in own
                ]
                for prompt, own in zip(self.PROMPTS, samples, strict=True)
            ]

        expected = slow_curve(divergences(self.STUDENT_SAMPLES), divergences(self.TEACHER_SAMPLES), 4)
        found = measure_exposure_bias(
            student, teacher, self.PROMPTS, self.STUDENT_SAMPLES, self.TEACHER_SAMPLES, vocab=VOCAB
        )
        assert found.curve().error == pytest.approx(expected, abs=1e-2)
        assert found.samples == 4

    def test_is_0_for_the_teacher_itself(self, teacher: PreTrainedModel) -> None:
        curve = measure_exposure_bias(
            teacher, teacher, self.PROMPTS, self.STUDENT_SAMPLES, self.TEACHER_SAMPLES, vocab=VOCAB
        ).curve()
        assert curve.error == [0.0] * 4

    def test_refuses_uneven_samples(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        for samples in (([[1], [2]], [[1]]), ([], []), ([[1], [2]],)):
            with pytest.raises(ValueError, match="same number of samples"):
                measure_exposure_bias(student, teacher, self.PROMPTS, samples, self.TEACHER_SAMPLES)

    def test_no_prompts_are_an_empty_share(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        empty = measure_exposure_bias(student, teacher, [], [], [])
        whole = from_divergences(STUDENT, TEACHER)
        assert ExposureBias.merged([empty, whole]).curve() == whole.curve()
        with pytest.raises(ValueError, match="without prompts"):
            empty.curve()

    def test_estimates_the_expectation_over_all_prefixes(self) -> None:
        """Against every prefix of a tiny vocabulary, weighted by its exact probability; nothing ends early."""
        vocab, length, count = 3, 3, 1000

        def model(seed: int) -> PreTrainedModel:
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=vocab,
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=1,
                num_key_value_heads=1,
                max_position_embeddings=16,
                initializer_range=1.0,
                bos_token_id=None,
                eos_token_id=None,
            )
            return LlamaForCausalLM(config).eval()

        student, teacher = model(0), model(1)
        prompt = [1, 2]

        def next_probabilities(model: PreTrainedModel, prefix: list[int]) -> list[float]:
            with torch.no_grad():
                return torch.softmax(model(torch.tensor([prompt + prefix])).logits[0, -1].double(), dim=-1).tolist()

        def exact(walker: PreTrainedModel) -> float:
            total = 0.0
            for place in range(length):
                for prefix in itertools.product(range(vocab), repeat=place):
                    weight = 1.0
                    for step, token in enumerate(prefix):
                        weight *= next_probabilities(walker, list(prefix[:step]))[token]
                    total += weight * slow_kl(student, teacher, prompt + list(prefix), vocab)
            return total

        def draw(walker: PreTrainedModel, seed: int) -> list[list[int]]:
            random = np.random.default_rng(seed)
            found = []
            known: dict[tuple[int, ...], list[float]] = {}
            for _ in range(count):
                sample: list[int] = []
                for _ in range(length):
                    key = tuple(sample)
                    known.setdefault(key, next_probabilities(walker, sample))
                    sample.append(int(random.choice(vocab, p=known[key])))
                found.append(sample)
            return found

        expected = 100 * (exact(student) - exact(teacher)) / exact(teacher)
        assert abs(expected) > 5, "the case tells the two arms apart"
        curve = measure_exposure_bias(
            student, teacher, [prompt] * count, [[s] for s in draw(student, 1)], [[s] for s in draw(teacher, 2)]
        ).curve(resamples=200)
        assert curve.low[-1] is not None and curve.high[-1] is not None
        assert curve.low[-1] <= expected <= curve.high[-1]
        assert curve.high[-1] - curve.low[-1] < 4 * abs(expected), "an interval that says something"
