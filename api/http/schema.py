"""Bases of what goes in and out."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler
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
        # The inner schema is there for OpenAPI alone: neither its validator nor its serializer is called.
        return core_schema.no_info_wrap_validator_function(
            lambda value, _: value,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )


_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _rfc3339(value: Any) -> Any:
    if not isinstance(value, str) or _TIME.fullmatch(value) is None:
        raise ValueError("This is a time with its offset (RFC 3339), such as 2030-01-31T12:00:00Z.")
    return value


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("This time lies outside of the years 1 to 9999.") from None


Time = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_utc)]
"""An RFC 3339 date-time, in UTC once it is read."""
