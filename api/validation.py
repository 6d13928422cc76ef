"""Turns pydantic's errors into our field errors: a JSON pointer and a stable code for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from api.problems import BadRequest, FieldError, Invalid, Problem

_CODES = {
    "extra_forbidden": "unknown_field",
    "missing": "missing_field",
    "union_tag_not_found": "missing_field",
}
# A validator of the whole document names the field itself, such as `training.rows_per_step (3) must be ...`.
_NAMED_FIELD = re.compile(r"[a-z_]+(?:\.[a-z_]+)+(?= )")


def pointer(parts: Iterable[str | int]) -> str:
    """The JSON pointer (RFC 6901) of a path of member names and positions."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def body_path(location: Sequence[str | int], body: Any, *, last_is_absent: bool) -> list[str | int]:
    """`location` without the names that pydantic adds for the branch of a union it tried.

    A part is real if the body has it at that place. The last part of a missing field is real too.
    """
    path: list[str | int] = []
    here = body
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if _has(here, part):
            here = here[part]
        elif not (last and last_is_absent):
            continue
        path.append(part)
    return path


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def field_error(error: Mapping[str, Any], body: Any) -> FieldError:
    """One entry of `ValidationError.errors()`, its location starting with body, query, path or header."""
    kind = str(error["type"])
    source, *location = error["loc"]
    code = _CODES.get(kind, "invalid_value")
    detail = str(error["msg"]).removeprefix("Value error, ")
    if source != "body":
        return FieldError(code, str(location[-1]) if location else None, detail)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(error["ctx"]["discriminator"]).strip("'")
        path = [*body_path(location, body, last_is_absent=False), tag]
        if kind == "union_tag_invalid":
            code = f"unknown_{path[0]}" if path[0] == "method" else "invalid_value"
            detail = f"{error['ctx']['tag']!r} is none of {error['ctx']['expected_tags']}."
        return FieldError(code, pointer(path), detail)
    path = body_path(location, body, last_is_absent=kind == "missing")
    if not path and (named := _NAMED_FIELD.match(detail)):
        path = list(named.group().split("."))
    if kind == "extra_forbidden":
        detail = f"There is no field {str(path[-1])!r} here." if path else detail
    return FieldError(code, pointer(path), detail)


def validation_problem(errors: Sequence[Mapping[str, Any]], body: Any) -> Problem:
    """The problem for the errors of one request: 400 where the body is no JSON, else 422."""
    for error in errors:
        if error["type"] == "json_invalid":
            position = error["loc"][-1]
            reason = error["ctx"]["error"]
            return BadRequest(f"The body is not JSON: {reason} at character {position}.", code="invalid_json")
    # A union reports each branch that it tried: one sentence a field is enough.
    unique = {(fault.code, fault.param): fault for fault in (field_error(error, body) for error in errors)}
    faults = list(unique.values())
    first = faults[0]
    where = f"{first.param}: " if first.param else ""
    more = f" ({len(faults) - 1} more in errors)" if len(faults) > 1 else ""
    return Invalid(f"{where}{first.detail}{more}", code=first.code, param=first.param, errors=faults)
