"""Bases of what goes in and out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class In(BaseModel):
    """A request body: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Out(BaseModel):
    """A response body, read from the attributes of a row: `XOut.model_validate(row)`.

    OpenAPI says of every field that it is always there.
    """

    model_config = ConfigDict(
        from_attributes=True,
        validate_by_name=True,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )
