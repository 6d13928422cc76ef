"""How much of the student's error comes from walking its own way: the excess accumulated error.

Arora et al. 2022, as section 3.3 of arXiv 2306.08543 takes it over. With p the teacher, q the student,
both sums over the first l tokens of a response:

    R(l)        = sum_t E_{y<t ~ q} KL(p(.|y<t) || q(.|y<t))    prefixes of the student's own
    l eps(l)    = sum_t E_{y<t ~ p} KL(p(.|y<t) || q(.|y<t))    prefixes of the teacher's
    ExAccErr(l) = 100 (R(l) - l eps(l)) / (l eps(l))            percent

0 says that the student errs no more on its own prefixes than on the teacher's. Sampling noise can
make it negative.

Estimation. At each position the divergence is averaged over a prompt's samples that are still
alive there, then over the prompts that have one; the means are summed over positions. A position
that no sample of a prompt reaches is thus no observation of that prompt, not a divergence of
zero, and nothing needs to be added to a denominator. The first position counts: both sums share
it exactly. Intervals come from resampling the prompts with replacement, each with its samples
from both models.

Axes: P prompts, T positions, W resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from minillm_core.evaluate.scoring import Scored, token_values
from minillm_core.objectives.divergences import divergence

Array = npt.NDArray[np.float64]

NEGLIGIBLE_KL = 1e-6
"""Nats per token that float32 logits cannot tell from zero: two models closer than this are the same."""


@dataclass(frozen=True)
class ExposureBias:
    """Per prompt and position, the mean divergence over the samples alive there; NaN where there is none.

    Those of several ranks join with :meth:`merged`.
    """

    student_PT: Array
    """On the student's samples."""
    teacher_PT: Array
    """On the teacher's samples."""
    samples: int
    """Samples of all prompts, those of one model."""

    @classmethod
    def merged(cls, parts: Iterable[ExposureBias]) -> ExposureBias:
        parts = list(parts)
        width = max((part.student_PT.shape[1] for part in parts), default=0)
        return cls(
            np.concatenate([_widened(part.student_PT, width) for part in parts] or [np.zeros((0, 0))]),
            np.concatenate([_widened(part.teacher_PT, width) for part in parts] or [np.zeros((0, 0))]),
            sum(part.samples for part in parts),
        )

    def curve(self, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> ExposureCurve:
        """The curve over lengths with its bootstrap interval; the same arguments give the same interval.

        Raises ValueError where there are no prompts.
        """
        alive_student_T = (~np.isnan(self.student_PT)).sum(axis=0)
        alive_teacher_T = (~np.isnan(self.teacher_PT)).sum(axis=0)
        alive_T = np.minimum(alive_student_T, alive_teacher_T)
        length = int(np.argmin(alive_T > 0)) if (alive_T == 0).any() else len(alive_T)
        prompts = len(self.student_PT)
        if prompts == 0:
            raise ValueError("there is no curve without prompts")
        # In an order of their own, so that the interval does not hang on how the prompts were shared among ranks.
        order_P = np.argsort(np.nansum(self.student_PT, axis=1), kind="stable")
        student_PT, teacher_PT = self.student_PT[order_P, :length], self.teacher_PT[order_P, :length]
        error_T = _excess(student_PT, teacher_PT, np.ones((1, prompts)))[0]
        draws_WP = np.random.default_rng(seed).multinomial(prompts, [1 / prompts] * prompts, size=resamples)
        errors_WT = _excess(student_PT, teacher_PT, draws_WP.astype(np.float64))
        low_T, high_T, std_T = (np.full(length, np.nan) for _ in range(3))
        for place in range(length):
            drawn = errors_WT[~np.isnan(errors_WT[:, place]), place]
            # Resamples without a prompt that long say nothing; where most do not, neither does the interval.
            if 2 * len(drawn) > resamples:
                low_T[place], high_T[place] = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
                std_T[place] = drawn.std(ddof=1)
        half = int((2 * alive_T[:length] >= prompts).sum())
        return ExposureCurve(
            error=_numbers(error_T),
            low=_numbers(low_T),
            high=_numbers(high_T),
            std=_numbers(std_T),
            prompts_student=alive_student_T[:length].tolist(),
            prompts_teacher=alive_teacher_T[:length].tolist(),
            prompts=prompts,
            samples=self.samples,
            confidence=confidence,
            length=half,
        )


@dataclass(frozen=True)
class ExposureCurve:
    """ExAccErr at lengths 1, 2, 3 ... in percent; None where it is undefined."""

    error: list[float | None]
    low: list[float | None]
    high: list[float | None]
    std: list[float | None]
    """Standard error: the standard deviation over resamples."""
    prompts_student: list[int]
    """Prompts with a student's sample that long."""
    prompts_teacher: list[int]
    prompts: int
    samples: int
    confidence: float
    length: int
    """Longest length that at least half of the prompts reach under both models: where the report reads the curve."""

    def values(self) -> dict[str, float]:
        """``exposure_bias`` in percent at :attr:`length`, its bounds ``_low`` and ``_high``, and that length."""
        if self.length == 0 or self.error[self.length - 1] is None:
            return {}
        at = self.length - 1
        found = {
            "exposure_bias": self.error[at],
            "exposure_bias_low": self.low[at],
            "exposure_bias_high": self.high[at],
        }
        return {name: value for name, value in found.items() if value is not None} | {
            "exposure_bias_length": float(self.length)
        }

    def details(self) -> dict[str, Any]:
        """The whole curve, for the report."""
        return {
            "ex_acc_err": self.error,
            "low": self.low,
            "high": self.high,
            "std": self.std,
            "prompts_student": self.prompts_student,
            "prompts_teacher": self.prompts_teacher,
            "prompts": self.prompts,
            "samples": self.samples,
            "confidence": self.confidence,
        }


def measure_exposure_bias(
    student: Scored,
    teacher: Scored,
    prompts: Sequence[Sequence[int]],
    student_samples: Sequence[Sequence[Sequence[int]]],
    teacher_samples: Sequence[Sequence[Sequence[int]]],
    *,
    vocab: int | None = None,
    temperature: float = 1.0,
    batch_tokens: int = 8192,
) -> ExposureBias:
    """Divergences along samples drawn from either model.

    ``student_samples[i]`` and ``teacher_samples[i]`` are the responses sampled for ``prompts[i]``,
    as many from one model as from the other, end token included (it is a position like any
    other). ``temperature`` is that of the sampling and divides the logits of both models.

    Without prompts (a rank that has no rows) the result is empty. Raises ValueError where the
    numbers of samples differ or a prompt has none.
    """
    if not prompts and not student_samples and not teacher_samples:
        return ExposureBias.merged([])
    counts = {len(samples) for samples in (*student_samples, *teacher_samples)}
    if len(counts) != 1 or counts == {0} or not len(prompts) == len(student_samples) == len(teacher_samples):
        raise ValueError("every prompt needs the same number of samples, at least one, from both models")
    (per_prompt,) = counts

    def compute(logits: tuple[torch.Tensor, ...], tokens_N: torch.Tensor) -> torch.Tensor:
        student_NV, teacher_NV = logits
        return divergence("forward_kl", student_NV, teacher_NV, temperature=temperature).unsqueeze(-1)

    def means(samples: Sequence[Sequence[Sequence[int]]]) -> Array:
        found = token_values(
            compute,
            [student, teacher],
            [prompt for prompt in prompts for _ in range(per_prompt)],
            [response for own in samples for response in own],
            vocab=vocab,
            batch_tokens=batch_tokens,
        )
        divergences = [values_L1.squeeze(-1).numpy() for values_L1 in found]
        width = max(map(len, divergences))
        return np.stack(
            [alive_mean(divergences[start : start + per_prompt], width) for start in range(0, len(found), per_prompt)]
        )

    student_PT, teacher_PT = means(student_samples), means(teacher_samples)
    width = max(student_PT.shape[1], teacher_PT.shape[1])
    return ExposureBias(_widened(student_PT, width), _widened(teacher_PT, width), samples=len(prompts) * per_prompt)


def alive_mean(rows: Sequence[Array], width: int) -> Array:
    """Mean (T,) over the rows that are long enough, NaN where none is."""
    total_T, alive_T = np.zeros(width), np.zeros(width)
    for row in rows:
        total_T[: len(row)] += row
        alive_T[: len(row)] += 1
    return np.divide(total_T, alive_T, out=np.full(width, math.nan), where=alive_T > 0)


def _excess(student_PT: Array, teacher_PT: Array, weights_WP: Array) -> Array:
    """ExAccErr (W, T) with the prompts counted as often as each row of weights says."""
    accumulated_WT = np.cumsum(_weighted_mean(student_PT, weights_WP), axis=1)
    baseline_WT = np.cumsum(_weighted_mean(teacher_PT, weights_WP), axis=1)
    negligible_T = NEGLIGIBLE_KL * np.arange(1, student_PT.shape[1] + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        error_WT = 100.0 * (accumulated_WT - baseline_WT) / baseline_WT
    error_WT = np.where(baseline_WT <= negligible_T, np.nan, error_WT)
    same_WT = (baseline_WT <= negligible_T) & (accumulated_WT <= negligible_T)
    return np.where(same_WT, 0.0, error_WT)


def _weighted_mean(values_PT: Array, weights_WP: Array) -> Array:
    alive_PT = ~np.isnan(values_PT)
    total_WT = weights_WP @ np.where(alive_PT, values_PT, 0.0)
    weight_WT = weights_WP @ alive_PT.astype(np.float64)
    return np.divide(total_WT, weight_WT, out=np.full(total_WT.shape, math.nan), where=weight_WT > 0)


def _widened(values_PT: Array, width: int) -> Array:
    missing = width - values_PT.shape[1]
    return np.pad(values_PT, ((0, 0), (0, missing)), constant_values=math.nan)


def _numbers(values_T: Array) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values_T]
