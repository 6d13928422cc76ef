"""Bases of what goes in and out."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


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


class Stored:
    """Marks a field that the store keeps as JSON, `Annotated[T, Stored]`.

    It is shown as it was kept, by whatever release, and never judged again; OpenAPI describes it as a `T`.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        described = handler(source)
        return core_schema.any_schema(metadata={"pydantic_js_functions": [lambda _, describe: describe(described)]})
