"""All measurements that a job asks for, of one model, over all ranks.

The dev rows are split over the ranks; what each finds is merged, so the numbers do not depend on
how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm_core.data.dataset import TokenizedRow
from minillm_core.evaluate.answers import Answers, answers_without_repeats, decode_texts
from minillm_core.evaluate.calibration import Calibration, LabelSet, measure_calibration
from minillm_core.evaluate.divergence import Divergences, measure_divergences
from minillm_core.evaluate.diversity import Diversity, measure_diversity
from minillm_core.evaluate.exposure_bias import ExposureBias, measure_exposure_bias
from minillm_core.evaluate.lm_loss import LmLoss, lm_loss
from minillm_core.evaluate.rouge import TextScores, score_texts, words
from minillm_core.rollout.decoder import Decoder
from minillm_core.spec import EvaluationSpec
from minillm_core.train.distributed import Ranks
from minillm_core.train.rollouts import Sampling, draw
from minillm_core.train.rounds import derived_seed


@dataclass(frozen=True)
class Measured:
    values: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    """What is more than a number, such as curves."""
    texts: list[str] = field(default_factory=list)
    """Answers to the first prompts, with the first seed."""


@dataclass(frozen=True)
class Subject:
    """A model under measurement: as a model for whole rows, as a decoder for answers."""

    model: PreTrainedModel
    decoder: Decoder


@dataclass(frozen=True)
class Measurement:
    """What is measured and how; the same for the student before, the student after and the teacher."""

    spec: EvaluationSpec
    rows: Sequence[TokenizedRow]
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    batch_tokens: int
    ranks: Ranks
    labels: LabelSet | None = None

    def dev_scores(self, decoder: Decoder) -> dict[str, float]:
        """What picks the student while training: ROUGE-L, exact match and lengths with the first seed."""
        numbers = self.ranks.share(len(self.rows))
        answers = self._answers(decoder, None, numbers, self.spec.seeds[0])
        scores = TextScores.merged(self.ranks.gather(self._scores(answers, numbers)))
        diversity = Diversity.merged(self.ranks.gather(self._diversity(answers)))
        values = {**scores.values(), **diversity.values()}
        return {f"dev_{name}": value for name, value in values.items() if name in _DEV_VALUES}

    def dev_loss(self, model: PreTrainedModel) -> float:
        """Mean validation loss per row, in nats per token."""
        own = [self.rows[number] for number in self.ranks.share(len(self.rows))]
        part = lm_loss(model, own, vocab=self.sampling.vocab, batch_tokens=self.batch_tokens)
        return LmLoss.merged(self.ranks.gather(part)).values()["lm_loss"]

    def measure(
        self, subject: Subject, teacher: Decoder | None, announce: Callable[[str], None] = lambda name: None
    ) -> Measured:
        """Every metric of the spec. ``teacher`` is None when the subject is the teacher itself."""
        metrics, ranks, vocab = self.spec.metrics, self.ranks, self.sampling.vocab
        numbers = ranks.share(len(self.rows))
        own = [self.rows[number] for number in numbers]
        prompts = [row.prompt_ids for row in own]
        values: dict[str, float] = {}
        details: dict[str, Any] = {}

        announce("answers")
        by_seed = [self._answers(subject.decoder, subject.model, numbers, seed) for seed in self.spec.seeds]
        scores = [TextScores.merged(ranks.gather(self._scores(answers, numbers))).values() for answers in by_seed]
        if "rouge_l" in metrics:
            values |= {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
            details["rouge_l_by_seed"] = [score["rouge_l"] for score in scores]
        if "diversity" in metrics:
            values |= Diversity.merged(ranks.gather(self._diversity(by_seed[0]))).values()
        if "lm_loss" in metrics:
            announce("lm_loss")
            losses = lm_loss(subject.model, own, vocab=vocab, batch_tokens=self.batch_tokens)
            values |= LmLoss.merged(ranks.gather(losses)).values()
        if "calibration" in metrics and self.labels is not None:
            announce("calibration")
            labelled = self.labels.part(ranks.rank, ranks.world)
            found = measure_calibration(subject.model, labelled, vocab=vocab, batch_tokens=self.batch_tokens)
            values |= Calibration.merged(ranks.gather(found)).values()
        if teacher is not None and "divergence" in metrics:
            announce("divergence")
            for suffix, responses in (
                ("gold", [row.response_ids for row in own]),
                ("samples", by_seed[0].response_ids),
            ):
                part = measure_divergences(
                    subject.model,
                    teacher,
                    prompts,
                    responses,
                    vocab=vocab,
                    temperature=self.spec.temperature,
                    batch_tokens=self.batch_tokens,
                )
                values |= Divergences.merged(ranks.gather(part)).values(suffix)
        if teacher is not None and "exposure_bias" in metrics:
            announce("exposure_bias")
            curve = self._exposure_bias(subject, teacher, numbers).curve()
            values |= curve.values()
            details["exposure_bias"] = curve.details()
        texts = self._first_texts(by_seed[0], numbers)
        return Measured(values, details, texts)

    def _exposure_bias(self, subject: Subject, teacher: Decoder, numbers: list[int]) -> ExposureBias:
        """Samples from both models, always drawn and never greedy: the definition takes expectations."""
        prompts = [self.rows[number].prompt_ids for number in numbers]
        samples: list[list[list[list[int]]]] = []
        for who, decoder in (("student", subject.decoder), ("teacher", teacher)):
            per_prompt: list[list[list[int]]] = [[] for _ in numbers]
            for seed in self.spec.seeds:
                drawn = draw(
                    decoder,
                    None,
                    prompts,
                    numbers,
                    self.sampling,
                    alpha=0.0,
                    temperature=self.spec.temperature,
                    seed=derived_seed(seed, "exposure_bias", who),
                )
                for own, response in zip(per_prompt, drawn.response_ids, strict=True):
                    own.append(response)
            samples.append(per_prompt)
        part = measure_exposure_bias(
            subject.model,
            teacher,
            prompts,
            samples[0],
            samples[1],
            vocab=self.sampling.vocab,
            temperature=self.spec.temperature,
            batch_tokens=self.batch_tokens,
        )
        return ExposureBias.merged(self.ranks.gather(part))

    def _answers(self, decoder: Decoder, model: PreTrainedModel | None, numbers: list[int], seed: int) -> Answers:
        """``model`` is needed where repeated n-grams are forbidden."""
        prompts = [self.rows[number].prompt_ids for number in numbers]
        if not prompts:
            return Answers([], [], [])
        greedy = self.spec.decoding == "greedy"
        if model is not None and self.spec.no_repeat_ngram_size > 0:
            return answers_without_repeats(
                model,
                self.tokenizer,
                prompts,
                no_repeat_ngram_size=self.spec.no_repeat_ngram_size,
                max_new_tokens=self.sampling.max_new_tokens,
                eos_ids=self.sampling.eos_ids,
                seed=derived_seed(seed, self.ranks.rank),
                batch_rows=self.sampling.batch_rows,
                vocab=self.sampling.vocab,
                temperature=self.spec.temperature,
                greedy=greedy,
            )
        drawn = draw(
            decoder,
            None,
            prompts,
            numbers,
            self.sampling,
            alpha=0.0,
            temperature=self.spec.temperature,
            seed=derived_seed(seed, "evaluation"),
            greedy=greedy,
        )
        return Answers(drawn.response_ids, drawn.truncated, decode_texts(self.tokenizer, drawn.response_ids))

    def _scores(self, answers: Answers, numbers: list[int]) -> TextScores:
        references = [[self.rows[number].response_text] for number in numbers]
        return score_texts(answers.texts, references, self.spec.rouge_tokenizer)

    @property
    def references_have_words(self) -> bool:
        """Whether ROUGE-L can tell answers to any of the rows apart."""
        return any(words(row.response_text, self.spec.rouge_tokenizer) for row in self.rows)

    def _diversity(self, answers: Answers) -> Diversity:
        return measure_diversity(answers.response_ids, answers.truncated, self.sampling.eos_ids)

    def _first_texts(self, answers: Answers, numbers: list[int]) -> list[str]:
        """The texts of the first ``spec.samples`` rows, whichever ranks they were on."""
        wanted = min(self.spec.samples, len(self.rows))
        pairs = [(number, text) for number, text in zip(numbers, answers.texts, strict=True) if number < wanted]
        return [text for _, text in sorted(pair for part in self.ranks.gather(pairs) for pair in part)]


_DEV_VALUES = ("rouge_l", "exact_match", "response_tokens_mean", "repetition_4", "truncated")
