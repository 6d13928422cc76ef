"""Whether a model is as sure of its answers as it is right: accuracy and expected calibration error.

Zero-shot classification as in table 2 of arXiv 2306.08543: the model's probabilities of the label
words alone, normalised over the labels, say both which label it picks and how sure it is. The
paper does not say how many bins it used; the report gives the error with 10 and with 15.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm_core.data.dataset import TokenizedRow
from minillm_core.data.formats import read
from minillm_core.data.templates import Template, encode_prompt, end_token_id, prompt_texts, response_ids
from minillm_core.errors import UserError
from minillm_core.evaluate.scoring import token_log_probs, token_values
from minillm_core.spec.rows import MAX_LABELS, Example, Message, calibration_rows

BINS = (10, 15)
_PARAM = "/evaluation/calibration_file"
_SHORT_WORDS = 3
_FEWEST_ROWS = 8


@dataclass(frozen=True)
class LabelledPrompt:
    prompt_ids: list[int]
    label: int
    """Index of the right label."""


@dataclass(frozen=True)
class LabelSet:
    """Classification rows and the label words that all of them choose from."""

    rows: list[LabelledPrompt]
    labels: list[str]
    label_ids: list[list[int]]
    """Tokens of each label as a response."""

    def part(self, rank: int, world: int) -> LabelSet:
        """Every ``world``-th row, from ``rank`` on."""
        return LabelSet(self.rows[rank::world], self.labels, self.label_ids)


def read_calibration_file(
    path: Path, template: Template, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
) -> LabelSet:
    """Rows ``{"instruction", "answer"}``; the labels are the different answers.

    Raises UserError ``dataset_invalid`` at ``/evaluation/calibration_file``, with the line, when a
    row lacks what it needs, a prompt has more than ``max_prompt_tokens`` (left out, the accuracy
    would be of other rows than the file's), or there are not 2 to ``MAX_LABELS`` labels.
    """
    examples: list[Example] = []
    answers: list[str] = []
    for row in read(path, calibration_rows, _PARAM):
        answers.append(row.answer)
        asked = (Message("user", row.instruction),)
        examples.append(Example("instruction", asked, "", row.line, row.instruction, unit=row.unit))
    prompts: list[list[int]] = []
    for example, text in zip(examples, prompt_texts(examples, template, tokenizer, param=_PARAM), strict=True):
        prompt = encode_prompt(text, template, tokenizer)
        if len(prompt) > max_prompt_tokens:
            raise UserError(
                "dataset_invalid",
                f"{example.place}: the prompt has {len(prompt)} tokens, more than max_prompt_tokens "
                f"({max_prompt_tokens})",
                param=_PARAM,
            )
        prompts.append(prompt)
    labels = sorted(set(answers))
    rows = [LabelledPrompt(prompt, labels.index(answer)) for prompt, answer in zip(prompts, answers, strict=True)]
    return LabelSet(rows, labels, encode_labels(labels, template, tokenizer))


def labels_among(
    rows: Sequence[TokenizedRow], template: Template, tokenizer: PreTrainedTokenizerBase
) -> LabelSet | None:
    """The rows whose response is a label: at most three words, and the response of another row too.

    None where fewer than two labels or eight such rows are there.
    """
    answers = [row.response_text.strip() for row in rows]
    labels = sorted(
        {answer for answer in answers if 0 < len(answer.split()) <= _SHORT_WORDS and answers.count(answer) > 1}
    )
    chosen = [
        LabelledPrompt(row.prompt_ids, labels.index(answer))
        for row, answer in zip(rows, answers, strict=True)
        if answer in labels
    ]
    if not 2 <= len(labels) <= MAX_LABELS or len(chosen) < _FEWEST_ROWS:
        return None
    return LabelSet(chosen, labels, encode_labels(labels, template, tokenizer))


def encode_labels(labels: Sequence[str], template: Template, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokens of the label words.

    The words alone are compared, as in the paper. Only where one label is the beginning of another
    does the token that ends a response belong to each, or the shorter could never be told apart.

    Raises UserError ``dataset_invalid`` when two labels have the same tokens.
    """
    end_id = end_token_id(template, tokenizer)
    ended = [response_ids(label, template, tokenizer, end_id=end_id) for label in labels]
    bare = [ids[:-1] for ids in ended]
    if len({tuple(ids) for ids in bare}) < len(bare):
        raise UserError("dataset_invalid", "two labels have the same tokens", param=_PARAM)
    nested = any(first is not second and second[: len(first)] == first for first in bare for second in bare)
    return ended if nested else bare


@dataclass(frozen=True)
class Calibration:
    """One entry a row; those of several ranks join with :meth:`merged`."""

    confidence: tuple[float, ...] = ()
    """Probability of the label that was picked, among the labels."""
    correct: tuple[bool, ...] = ()

    @classmethod
    def merged(cls, parts: Iterable[Calibration]) -> Calibration:
        parts = list(parts)
        return cls(
            tuple(value for part in parts for value in part.confidence),
            tuple(value for part in parts for value in part.correct),
        )

    def values(self) -> dict[str, float]:
        """``accuracy`` in percent, ``ece_10`` and ``ece_15`` from 0 to 1; nothing without rows."""
        if not self.correct:
            return {}
        return {"accuracy": 100.0 * sum(self.correct) / len(self.correct)} | {
            f"ece_{bins}": expected_calibration_error(self.confidence, self.correct, bins) for bins in BINS
        }


def expected_calibration_error(confidence: Sequence[float], correct: Sequence[bool], bins: int) -> float:
    """Guo et al. 2017, equation 3: mean distance of confidence and accuracy over bins of equal width, by their rows.

    Bin b of B holds confidences in (b/B, (b+1)/B], the first one 0 as well. Returns 0 to 1.
    Raises ValueError without rows.
    """
    if not confidence or len(confidence) != len(correct):
        raise ValueError("as many confidences as outcomes are needed, at least one")
    sums: dict[int, tuple[float, int]] = {}
    for sure, right in zip(confidence, correct, strict=True):
        place = max(0, math.ceil(sure * bins) - 1)
        total, hits = sums.get(place, (0.0, 0))
        sums[place] = (total + sure, hits + right)
    return sum(abs(hits - total) for total, hits in sums.values()) / len(confidence)


def label_probabilities(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    label_ids: Sequence[Sequence[int]],
    *,
    vocab: int | None = None,
    batch_tokens: int = 8192,
) -> torch.Tensor:
    """Probability (rows, labels), float64, of each label given that the answer is one of them.

    Proportional to the product of the label's token probabilities after the prompt. Labels of one
    token each cost one forward pass a row, others one for each label.
    """
    if all(len(ids) == 1 for ids in label_ids):
        first = torch.tensor([ids[0] for ids in label_ids])

        def compute(logits: tuple[torch.Tensor, ...], tokens_N: torch.Tensor) -> torch.Tensor:
            return logits[0][:, first.to(logits[0].device)]

        placeholder = [label_ids[0]] * len(prompts)
        found = token_values(compute, [model], prompts, placeholder, vocab=vocab, batch_tokens=batch_tokens)
        scores = torch.cat(found) if found else torch.zeros(0, len(label_ids))
        return torch.softmax(scores.double(), dim=-1)
    log_probs = token_log_probs(
        model,
        [prompt for prompt in prompts for _ in label_ids],
        [ids for _ in prompts for ids in label_ids],
        vocab=vocab,
        batch_tokens=batch_tokens,
    )
    scores = torch.tensor([float(logp_L.sum()) for logp_L in log_probs], dtype=torch.float64)
    return torch.softmax(scores.view(len(prompts), len(label_ids)), dim=-1)


def measure_calibration(
    model: PreTrainedModel, labelled: LabelSet, *, vocab: int | None = None, batch_tokens: int = 8192
) -> Calibration:
    """Which label the model picks for each row, how sure it is, and whether it is right."""
    prompts = [row.prompt_ids for row in labelled.rows]
    probabilities = label_probabilities(model, prompts, labelled.label_ids, vocab=vocab, batch_tokens=batch_tokens)
    confidence, picked = probabilities.max(dim=-1)
    correct = [choice == row.label for choice, row in zip(picked.tolist(), labelled.rows, strict=True)]
    return Calibration(tuple(confidence.tolist()), tuple(correct))
