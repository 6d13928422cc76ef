"""What all parts of the contract are made of: strict models, references, number formats."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

_MODEL_REFERENCE = re.compile(r"^(hub:[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?|path:[^\x00-\x1f]+|model_[A-Za-z0-9]+)$")
_FILE_REFERENCE = re.compile(r"^(file_[A-Za-z0-9]+|path:[^\x00-\x1f]+)$")


def _check_model_reference(value: str) -> str:
    if not _MODEL_REFERENCE.match(value):
        raise ValueError(
            "a model is named hub:<id>, path:<folder under the models root> or model_<id of a student made here>"
        )
    return value


def _check_file_reference(value: str) -> str:
    if not _FILE_REFERENCE.match(value):
        raise ValueError("a dataset is named by the id of an uploaded file: file_...")
    return value


ModelReference = Annotated[str, AfterValidator(_check_model_reference)]
FileReference = Annotated[str, AfterValidator(_check_file_reference)]
DType = Literal["float32", "bfloat16", "float16"]
Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "adaptive_kl", "tvd"]


class Strict(BaseModel):
    """Refuses unknown fields, so that a misspelt setting is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
