"""Reads JSON Schemas of what comes in: every value in them, and which of those have no bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
Path = tuple[str, ...]


def values(schema: Schema, definitions: Schema, path: Path = ()) -> Iterator[tuple[Path, Schema]]:
    """Every schema of a value inside of `schema` with the names that lead to it; `*` is any item or any name.

    The members of a union that is told apart by `type` come under `type=...`.
    """
    if "$ref" in schema:
        yield from values(definitions[schema["$ref"].rpartition("/")[2]], definitions, path)
        return
    for keyword in ("anyOf", "oneOf", "allOf"):
        for branch in schema.get(keyword, ()):
            yield from values(branch, definitions, path)
    yield path, schema
    kind = schema.get("properties", {}).get("type", {}).get("const")
    inside = (*path, f"type={kind}") if kind else path
    for name, field in schema.get("properties", {}).items():
        yield from values(field, definitions, (*inside, name))
    for part in (schema.get("items"), schema.get("propertyNames"), schema.get("additionalProperties")):
        if isinstance(part, dict):
            yield from values(part, definitions, (*inside, "*"))
    for part in schema.get("prefixItems", ()):
        yield from values(part, definitions, (*inside, "*"))


def unbounded(schema: Schema, definitions: Schema) -> Iterator[str]:
    """What has no largest size: numbers without both bounds, texts, lists and objects without a maximal length."""
    for path, value in values(schema, definitions):
        what = f"{'/'.join(path)}: {value}"
        kind = value.get("type")
        if kind in ("integer", "number"):
            low, high = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
            if not (value.keys() & low and value.keys() & high) and "enum" not in value:
                yield what
        elif kind == "string":
            if not value.keys() & {"maxLength", "enum", "const", "format", "contentMediaType"}:
                yield what
        elif kind == "array":
            if "maxItems" not in value:
                yield what
        elif kind == "object":
            if value.get("additionalProperties") is not False and "maxProperties" not in value:
                yield what
        elif kind is None and not value.keys() & {"anyOf", "oneOf", "allOf", "const", "enum", "maxLength"}:
            yield what
