"""What all parts of the contract are made of: strict models, bounded numbers, references, number formats.

JSON has one kind of number. An integer may be written `5` or `5.0`, as JSON Schema has it (2020-12, 6.1.1), a number
with or without a fraction; but `true` and `"5"` are neither. Every number has a smallest and a largest value, so that
whatever is accepted fits a 64-bit column, a clock that ends in the year 9999 and a tensor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_MODEL_REFERENCE = re.compile(r"hub:[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?|path:[^\x00-\x1f]+|model_[A-Za-z0-9]+")
_FILE_REFERENCE = re.compile(r"file_[A-Za-z0-9]+|path:[^\x00-\x1f]+")


def _check_model_reference(value: str) -> str:
    if not _MODEL_REFERENCE.fullmatch(value):
        raise ValueError(
            "a model is named hub:<id>, path:<folder under the models root> or model_<id of a student made here>"
        )
    return value


def _check_file_reference(value: str) -> str:
    if not _FILE_REFERENCE.fullmatch(value):
        raise ValueError("a dataset is named by the id of an uploaded file: file_...")
    return value


@dataclass(frozen=True)
class Whole:
    """`Annotated[int, Whole(1, 10)]`: an integer from ``ge`` to ``le``."""

    ge: int
    le: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        bounded = core_schema.int_schema(strict=True, ge=self.ge, le=self.le)
        return core_schema.no_info_before_validator_function(_without_fraction, bounded)


def _without_fraction(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True, kw_only=True)
class Real:
    """`Annotated[float, Real(gt=0, le=1)]`: a finite number, bounded on both sides."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __post_init__(self) -> None:
        if (self.ge is None) == (self.gt is None) or (self.le is None) == (self.lt is None):
            raise TypeError("a number has one smallest and one largest value")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.float_schema(
            strict=True, allow_inf_nan=False, ge=self.ge, gt=self.gt, le=self.le, lt=self.lt
        )


Flag = Annotated[bool, Field(strict=True)]
Steps = Annotated[int, Whole(1, 10_000_000)]
"""Optimizer steps, at least one."""
Rows = Annotated[int, Whole(1, 1 << 20)]
"""Rows of one step, one round or one set: more than fit a machine at once."""
Temperature = Annotated[float, Real(ge=0.01, le=10)]
"""Logits divided by less overflow half precision."""
ReferenceKind = Literal["model", "adapter", "file"]


@dataclass(frozen=True)
class Names:
    """Marks a field that names something outside of the spec: see :mod:`minillm_core.spec.references`."""

    kind: ReferenceKind
    purpose: str


ModelReference = Annotated[str, Field(max_length=500), AfterValidator(_check_model_reference)]
FileReference = Annotated[str, Field(max_length=4096), AfterValidator(_check_file_reference)]
Revision = Annotated[str, Field(max_length=200)]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]
"""At most 16 pairs, names up to 64 characters, values up to 512."""
MAX_RUNTIME_SECONDS = 10 * 365 * 24 * 3600
"""Ten years: a deadline is a time that the clock must hold."""
DType = Literal["float32", "bfloat16", "float16"]
Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "adaptive_kl", "tvd"]


class Strict(BaseModel):
    """Refuses unknown fields, so that a misspelt setting is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
