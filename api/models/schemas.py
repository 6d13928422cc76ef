"""What goes out of `/v1/models`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, computed_field

from api.http.schema import Out


class ModelProblem(Out):
    """Why a folder cannot be used."""

    code: str
    """The code with which a job that names it is refused."""
    detail: str


class ModelOut(Out):
    id: str
    object: Literal["model"] = "model"
    reference: str
    """How a job names it: `path:<folder>` or `model_...`."""
    kind: str
    """`base` or `adapter` for a folder under the models root, `student` for a model made here."""
    name: str
    job: str | None = Field(validation_alias="job_id")
    """The job that made it."""
    revision: str | None
    architecture: str
    """Numbers and names are zero or empty where a folder could not be read."""
    causal_lm: bool
    parameters: int
    layers: int
    vocab_size: int
    context_length: int | None
    tokenizer_fingerprint: str | None
    """Models of equal fingerprints can teach and learn from each other."""
    dtype: str | None
    bytes: int
    problems: Annotated[list[ModelProblem], BeforeValidator(lambda problems: problems or [])]
    created_at: datetime

    @computed_field  # type: ignore[prop-decorator]
    @property
    def usable(self) -> bool:
        """Whether a job may name it; then there are no problems."""
        return not self.problems
