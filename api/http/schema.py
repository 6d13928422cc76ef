"""Bases of what goes in and out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class In(BaseModel):
    """A request body: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Out(BaseModel):
    """A response body: fields have no defaults, so that OpenAPI says that they are always there."""

    model_config = ConfigDict(use_attribute_docstrings=True)
