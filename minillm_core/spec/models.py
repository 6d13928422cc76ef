"""Teacher, student and data of a job."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, field_validator, model_validator

from minillm_core.spec.base import DType, FileReference, ModelReference, Strict


class TeacherSpec(Strict):
    model: ModelReference
    """`hub:<id>`, `path:<folder under the models root>` or `model_...`."""
    revision: str | None = Field(None, max_length=200)
    """Branch, tag or commit of a hub model."""
    dtype: DType | None = None
    """Number format the frozen teacher is held in; the training dtype when left out."""
    adapter: ModelReference | None = None
    """A LoRA adapter merged into the teacher before use."""


class PruneTeacher(Strict):
    """The student is the teacher with some of its layers: no second pretrained model is needed."""

    layers: int | list[int]
    """How many layers to keep, evenly spread with the first and last among them, or which ones."""

    @field_validator("layers")
    @classmethod
    def _sensible(cls, value: int | list[int]) -> int | list[int]:
        if isinstance(value, int):
            if value < 1:
                raise ValueError("at least one layer must be kept")
        elif not value:
            raise ValueError("at least one layer must be kept")
        elif any(layer < 0 for layer in value) or any(b <= a for a, b in itertools.pairwise(value)):
            raise ValueError("layer numbers must be non-negative and rise")
        return value

    @property
    def count(self) -> int:
        return self.layers if isinstance(self.layers, int) else len(self.layers)


class LoraSpec(Strict):
    """A low-rank adapter on the student; merged into its weights on export."""

    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | None = None
    """Names of the linear layers to adapt; every linear layer but the head when left out."""


class StudentSpec(Strict):
    """Exactly one of ``model`` and ``prune_teacher``."""

    model: ModelReference | None = None
    revision: str | None = Field(None, max_length=200)
    prune_teacher: PruneTeacher | None = None
    lora: LoraSpec | None = None

    @model_validator(mode="after")
    def _one_source(self) -> StudentSpec:
        if (self.model is None) == (self.prune_teacher is None):
            raise ValueError("give exactly one of model and prune_teacher")
        if self.prune_teacher is not None and self.revision is not None:
            raise ValueError("revision belongs to a hub model, not to a pruned teacher")
        return self


class DatasetSpec(Strict):
    """JSONL, one object a line, in one of the accepted shapes (see docs/datasets.md)."""

    file: FileReference
    template: Literal["chat", "alpaca", "plain"] = "chat"
    """`chat` renders the tokenizer's own chat template; `alpaca` a fixed instruction layout; `plain` the bare text."""
    dev_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the rows held out to choose the student; at least one row."""
    max_dev_rows: int = Field(1000, ge=1)


class CorpusSpec(Strict):
    """Plain text for the pre-training loss: JSONL rows with `text`, or a text file."""

    file: FileReference
