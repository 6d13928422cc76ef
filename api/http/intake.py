"""One look at all that a request brings, before anything else reads it: its text, its size, its depth.

Text that no database holds (NUL, halves of surrogate pairs) would otherwise come to light wherever it is first written
or encoded; a body of a hundred thousand values, or nested a thousand deep, would be worked on for seconds.
"""

from __future__ import annotations

import email.message
import math
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, UploadFile

from api.http.problems import FieldError, invalid
from api.http.validation import pointer

MAX_PARAMETER = 2000
"""Characters of a parameter that does not say itself how many it may have."""
MAX_VALUES = 3000
"""Values in a JSON body: a few times what the largest job has."""
MAX_DEPTH = 24
MAX_NAME = 200

_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
_WHAT = "text with a NUL or half of a surrogate pair, which no database holds"


async def check_request(request: Request) -> None:
    """Raise Invalid where the path, the query, a declared header or a JSON body has what cannot be kept."""
    route = request.scope["route"]
    if not isinstance(route, APIRoute):
        return
    faults = [*_parameters(request, route)]
    # Read and parsed already: the framework keeps it at the request. A body of another type is refused later.
    if route.body_field is not None and not faults and _is_json(request) and await request.body():
        faults = [*_body(await request.json())]
    if faults:
        raise invalid(faults)


def is_sound(text: str) -> bool:
    """Whether a parameter's text would be let through."""
    return len(text) <= MAX_PARAMETER and not _NO_TEXT.search(text)


def check_form(form: FormData) -> Iterator[FieldError]:
    """What cannot be kept of a form: names, values, and names of files."""
    for name, value in form.multi_items():
        text = value.filename or "" if isinstance(value, UploadFile) else value
        if _NO_TEXT.search(name) or _NO_TEXT.search(text):
            yield FieldError("invalid_value", pointer([_shown(name)]), f"This is {_WHAT}.")


def _parameters(request: Request, route: APIRoute) -> Iterator[FieldError]:
    for name, value in request.path_params.items():
        # The server has decoded the path: what was not UTF-8 is U+FFFD by now.
        if _NO_TEXT.search(str(value)) or "\ufffd" in str(value):
            yield FieldError("invalid_value", name, f"This is {_WHAT}.")
        yield from _length(name, str(value))
    # Not from the framework's own reading, which has put U+FFFD in the place of what is no UTF-8.
    query = request.scope["query_string"].decode("latin-1")
    for name, value in parse_qsl(query, keep_blank_values=True, errors="surrogateescape"):
        if _NO_TEXT.search(name) or _NO_TEXT.search(value):
            yield FieldError("invalid_value", _shown(name), f"This is {_WHAT}.")
        yield from _length(_shown(name), value)
    for field in route.dependant.header_params:
        for value in request.headers.getlist(field.alias):
            if "\x00" in value:
                yield FieldError("invalid_value", field.alias, f"This is {_WHAT}.")
            yield from _length(field.alias, value)


def _length(name: str, value: str) -> Iterator[FieldError]:
    if len(value) > MAX_PARAMETER:
        yield FieldError("invalid_value", name[:MAX_NAME], f"A parameter has at most {MAX_PARAMETER} characters.")


def _is_json(request: Request) -> bool:
    """As the framework decides it."""
    message = email.message.Message()
    message["content-type"] = request.headers.get("content-type", "")
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def _body(body: Any) -> Iterator[FieldError]:
    left = MAX_VALUES
    open_: list[tuple[tuple[str | int, ...], Any]] = [((), body)]
    while open_:
        place, value = open_.pop()
        if isinstance(value, str):
            if _NO_TEXT.search(value):
                yield FieldError("invalid_value", pointer(place), f"This is {_WHAT}.")
        elif isinstance(value, float):
            if not math.isfinite(value):
                yield FieldError("invalid_value", pointer(place), "This is no finite number.")
        elif isinstance(value, dict | list):
            left -= len(value)
            if left < 0:
                yield FieldError("too_many_values", pointer(place[:1]), f"A body has at most {MAX_VALUES:,} values.")
                return
            if value and len(place) == MAX_DEPTH:
                yield FieldError("too_deep", pointer(place[:1]), f"A body is nested at most {MAX_DEPTH} deep.")
                return
            if isinstance(value, list):
                open_ += [((*place, number), item) for number, item in enumerate(value)]
                continue
            for name, item in value.items():
                if len(name) > MAX_NAME:
                    reason = f"A name has at most {MAX_NAME} characters."
                    yield FieldError("invalid_value", pointer([*place, _shown(name[:MAX_NAME])]), reason)
                elif _NO_TEXT.search(name):
                    yield FieldError("invalid_value", pointer([*place, _shown(name)]), f"The name is {_WHAT}.")
                else:
                    open_.append(((*place, name), item))


def _shown(text: str) -> str:
    """The text with what cannot be written in an answer as an escape of it."""
    return _NO_TEXT.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
