"""Teacher, student and data of a job."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from minillm_core.spec.base import DType, FileReference, ModelReference, Names, Real, Revision, Rows, Strict, Whole

_MOST_LAYERS = 1000


class TeacherSpec(Strict):
    model: Annotated[ModelReference, Names("model", "teacher")]
    """`hub:<id>`, `path:<folder under the models root>` or `model_...`."""
    revision: Revision | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType | None = None
    """Number format the frozen teacher is held in; the training dtype when left out."""
    adapter: Annotated[ModelReference | None, Names("adapter", "teacher")] = None
    """A LoRA adapter merged into the teacher before use."""


class PruneTeacher(Strict):
    """The student is the teacher with some of its layers: no second pretrained model is needed."""

    layers: (
        Annotated[int, Whole(1, _MOST_LAYERS)]
        | Annotated[list[Annotated[int, Whole(0, _MOST_LAYERS - 1)]], Field(min_length=1, max_length=_MOST_LAYERS)]
    )
    """How many layers to keep, evenly spread with the first and last among them, or which ones."""

    @field_validator("layers")
    @classmethod
    def _rising(cls, value: int | list[int]) -> int | list[int]:
        if not isinstance(value, int) and any(b <= a for a, b in itertools.pairwise(value)):
            raise ValueError("layer numbers must rise")
        return value

    @property
    def count(self) -> int:
        return self.layers if isinstance(self.layers, int) else len(self.layers)


class LoraSpec(Strict):
    """A low-rank adapter on the student; merged into its weights on export."""

    rank: Annotated[int, Whole(1, 1024)] = 8
    alpha: Annotated[float, Real(gt=0, le=1e6)] = 32.0
    dropout: Annotated[float, Real(ge=0, lt=1)] = 0.0
    target_modules: list[Annotated[str, Field(max_length=200)]] | None = Field(None, max_length=256)
    """Names of the linear layers to adapt; every linear layer but the head when left out."""


class StudentSpec(Strict):
    """Exactly one of ``model`` and ``prune_teacher``."""

    model: Annotated[ModelReference | None, Names("model", "student")] = None
    revision: Revision | None = None
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
    """Rows in one of the accepted files and shapes (see docs/datasets.md)."""

    file: Annotated[FileReference, Names("file", "dataset")]
    template: Literal["chat", "alpaca", "plain"] = "chat"
    """`chat` renders the tokenizer's own chat template; `alpaca` a fixed instruction layout; `plain` the bare text."""
    special_tokens: Literal["text", "tokens"] = "tokens"
    """What the text of a special token means within a row: the one token, or the text and nothing else."""
    dev_fraction: Annotated[float, Real(gt=0, lt=1)] = 0.05
    """Share of the rows held out to choose the student; at least one row."""
    max_dev_rows: Rows = 1000


class CorpusSpec(Strict):
    """Plain text for the pre-training loss: JSONL rows with `text`, or a text file."""

    file: Annotated[FileReference, Names("file", "corpus")]
