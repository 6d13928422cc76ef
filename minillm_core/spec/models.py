"""Teacher, student and data of a job."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from minillm_core.spec.base import (
    DType,
    FileReference,
    Flag,
    ModelReference,
    Names,
    Real,
    Revision,
    Rows,
    Strict,
    Whole,
)

_MOST_LAYERS = 1000
_ArgumentName = Annotated[str, Field(max_length=64, pattern=r"^[a-z][a-z0-9_]*$")]
_ArgumentValue = (
    Flag
    | Annotated[int, Whole(-(2**53), 2**53)]
    | Annotated[float, Real(ge=-(2.0**53), le=2.0**53)]
    | Annotated[str, Field(max_length=4096, strict=True)]
)
_RENDERINGS_OWN = frozenset((
    # What transformers passes or takes.
    "messages", "tools", "documents", "conversation", "chat_template", "tokenize", "padding", "truncation",
    "max_length", "add_generation_prompt", "continue_final_message", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "raise_exception", "strftime_now", "namespace",
    # Words of Jinja.
    "and", "or", "not", "in", "is", "if", "elif", "else", "for", "set", "block", "extends", "include", "import",
    "from", "macro", "call", "filter", "with", "true", "false", "none", "loop", "self", "super", "caller",
    "varargs", "kwargs", "range", "dict",
))  # fmt: skip
"""Variables and words of a chat template that are no argument of it."""


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
    template_arguments: dict[_ArgumentName, _ArgumentValue] = Field(default_factory=dict, max_length=16)
    """Variables of the chat template, such as `enable_thinking`, where nobody passes them; the student keeps them."""
    system_prompt: Annotated[str, Field(min_length=1, max_length=1 << 16)] | None = None
    """Said first in conversations that have no system message; the student's chat template keeps it."""
    train_on: Literal["last", "all"] = "last"
    """Which of the assistant's messages of a conversation are learned, those of weight 0 left out."""
    special_tokens: Literal["text", "tokens"] = "tokens"
    """What the text of a special token means within a row: the one token, or the text and nothing else."""
    dev_fraction: Annotated[float, Real(gt=0, lt=1)] = 0.05
    """Share of the rows held out to choose the student; at least one row."""
    max_dev_rows: Rows = 1000

    @field_validator("template_arguments")
    @classmethod
    def _no_argument_of_the_rendering(cls, value: dict[str, bool | int | float | str]) -> dict[str, Any]:
        for name in value:
            if name in _RENDERINGS_OWN or name.endswith("_token"):
                raise ValueError(f"{name} is given by the rendering itself")
        return value

    @model_validator(mode="after")
    def _of_the_chat_template(self) -> DatasetSpec:
        if self.template != "chat":
            for name in ("template_arguments", "system_prompt"):
                if getattr(self, name):
                    raise ValueError(f"{name} would not be used: only the template chat has it")
        return self


class CorpusSpec(Strict):
    """Plain text for the pre-training loss: JSONL rows with `text`, or a text file."""

    file: Annotated[FileReference, Names("file", "corpus")]
