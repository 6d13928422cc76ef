"""What goes out of `/v1/models`."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from api.http.schema import Out


class ModelOut(Out):
    id: str
    object: Literal["model"]
    reference: str
    """How a job names it: `path:<folder>` or `model_...`."""
    kind: str
    """`base` for a folder under the models root, `student` for one made here."""
    name: str
    job: str | None
    """The job that made it."""
    revision: str | None
    architecture: str
    causal_lm: bool
    parameters: int
    layers: int
    vocab_size: int
    context_length: int | None
    tokenizer_fingerprint: str | None
    """Models of equal fingerprints can teach and learn from each other."""
    dtype: str | None
    bytes: int
    created_at: datetime
