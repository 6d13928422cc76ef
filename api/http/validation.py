"""Turns pydantic's errors into our field errors: a JSON pointer and a stable code for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.datastructures import FormData

from api.http.problems import BadRequest, FieldError, Problem, UnsupportedMediaType, invalid

_CODES = {
    "extra_forbidden": "unknown_field",
    "missing": "missing_field",
    "union_tag_not_found": "missing_field",
}
# Where pydantic speaks of Python.
_SENTENCES = {
    "missing": "This field is needed.",
    "model_attributes_type": "A JSON object is needed here.",
    "model_type": "A JSON object is needed here.",
    "dict_type": "A JSON object is needed here.",
    "list_type": "A list is needed here.",
}
_FILE_PART = "A file goes into the form as a part with a file name: with curl, -F file=@rows.jsonl."
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
    detail = _SENTENCES.get(kind) or str(error["msg"]).removeprefix("Value error, ")
    if source != "body":
        # The name comes first; of a parameter that is a list, the position of the item follows.
        return FieldError(code, str(location[0]) if location else None, detail)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(error["ctx"]["discriminator"]).strip("'")
        path = [*body_path(location, body, last_is_absent=False), tag]
        if kind == "union_tag_invalid":
            code = f"unknown_{path[0]}" if path[0] == "method" else "invalid_value"
            detail = f"{error['ctx']['tag']!r} is none of {error['ctx']['expected_tags']}."
        else:
            detail = "This field is needed: it says which kind this is."
        return FieldError(code, pointer(path), detail)
    path = body_path(location, body, last_is_absent=kind == "missing")
    if not path and (named := _NAMED_FIELD.match(detail)):
        path = list(named.group().split("."))
    if kind == "extra_forbidden":
        detail = f"There is no field {str(path[-1])!r} here." if path else detail
    elif kind == "missing" and not path:
        detail = "The request needs a body: a JSON object."
    elif detail.startswith("Expected UploadFile"):
        detail = _FILE_PART
    return FieldError(code, pointer(path), detail)


def validation_problem(errors: Sequence[Mapping[str, Any]], body: Any, *, media_type: str | None = None) -> Problem:
    """The problem for the errors of one request: 400 where the body is no JSON, 415 where it is something
    else by its `media_type` (None: not known), else 422."""
    for error in errors:
        if error["type"] == "json_invalid":
            position = error["loc"][-1]
            reason = error["ctx"]["error"]
            return BadRequest(f"The body is not JSON: {reason} at character {position}.", code="invalid_json")
    if (unsupported := _unsupported(errors, body, media_type)) is not None:
        return unsupported
    # A union reports each branch that it tried: one fault a field, with what would have done.
    unique: dict[tuple[str, str | None], FieldError] = {}
    for fault in (field_error(error, body) for error in errors):
        known = unique.setdefault((fault.code, fault.param), fault)
        if fault.detail not in known.detail:
            detail = f"{known.detail}; or: {fault.detail}"
            unique[fault.code, fault.param] = FieldError(fault.code, fault.param, detail)
    return invalid(list(unique.values()), where=True)


def _unsupported(errors: Sequence[Mapping[str, Any]], body: Any, media_type: str | None) -> Problem | None:
    """The problem of a body in a form that the operation does not read, None where that is not the fault."""
    kind = (media_type or "").partition(";")[0].strip().lower()
    if media_type is None or not any(error["loc"][0] == "body" for error in errors):
        return None
    # The framework hands on as bytes what is not said to be JSON, and as an empty form what is not said to be one.
    if isinstance(body, bytes) and body:
        return UnsupportedMediaType(f"The body is to be JSON and {_said(kind)}: send Content-Type: application/json.")
    if isinstance(body, FormData) and kind != "multipart/form-data":
        return UnsupportedMediaType(f"The body is to be a multipart form and {_said(kind)}. {_FILE_PART}")
    return None


def _said(kind: str) -> str:
    return f"is said to be {kind}" if kind else "has no Content-Type"
