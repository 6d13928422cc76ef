"""What is measured of a student, and what it is exported as."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from minillm_core.spec.base import DType, FileReference, Names, Rows, Strict, Temperature, Whole

MetricName = Literal["rouge_l", "exposure_bias", "calibration", "diversity", "divergence", "lm_loss"]


class EvaluationSpec(Strict):
    metrics: list[MetricName] = Field(default_factory=lambda: list(DEFAULT_METRICS), max_length=16)
    max_rows: Rows = 200
    """Dev rows used by the evaluation before and after."""
    seeds: list[Annotated[int, Whole(0, 2**32 - 1)]] = Field(default_factory=lambda: [10], min_length=1, max_length=32)
    """One sampled evaluation for each; the report gives their mean."""
    decoding: Literal["greedy", "sample"] = "sample"
    temperature: Temperature = 1.0
    no_repeat_ngram_size: Annotated[int, Whole(0, 1000)] = 0
    rouge_tokenizer: Literal["unicode", "paper"] = "unicode"
    """What a word is to ROUGE-L: `unicode` for texts of every script, `paper` for runs of `a-z` and `0-9` alone."""
    samples: Annotated[int, Whole(0, 100)] = 4
    """Prompts whose answers before and after are kept in the report."""
    calibration_file: Annotated[FileReference | None, Names("file", "calibration")] = None
    """Rows `{"instruction", "answer"}`; the dataset's dev rows with short answers when left out."""

    @field_validator("metrics")
    @classmethod
    def _once(cls, value: list[MetricName]) -> list[MetricName]:
        if len(set(value)) != len(value):
            raise ValueError("a metric is named twice")
        return value


DEFAULT_METRICS: tuple[MetricName, ...] = ("rouge_l", "divergence")


ExportFormat = Literal["safetensors"]


class ExportSpec(Strict):
    formats: list[ExportFormat] = Field(default=["safetensors"], min_length=1, max_length=8)
    dtype: DType | None = None
    """Number format of the exported weights; the training dtype when left out."""
