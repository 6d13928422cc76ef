"""Refuses query parameters and parts of a form that a route does not have.

A misspelt `dry_run` must not start a training, nor a misspelt `purpose` make a dataset of a corpus.
"""

from __future__ import annotations

import re

from fastapi import Request
from fastapi.routing import APIRoute

from api.http.intake import MAX_NAME, check_form
from api.http.problems import FieldError, invalid
from api.http.validation import pointer

_IN_BRACKETS = re.compile(r"([^\[\]]+)\[.*\]", re.DOTALL)


async def only_known_parameters(request: Request) -> None:
    """Raise Invalid `unknown_parameter` for each query parameter that the route neither declares nor documents."""
    route = request.scope["route"]
    if not request.url.query or not isinstance(route, APIRoute):
        return
    plain, deep = _parameters(route)
    faults = []
    for name in dict.fromkeys(request.query_params):
        inner = _IN_BRACKETS.fullmatch(name)
        if name not in plain and not (inner and inner[1] in deep):
            takes = ", ".join([*sorted(plain), *(f"{known}[...]" for known in sorted(deep))]) or "none"
            detail = f"There is no query parameter {name[:MAX_NAME]!r} here; there are: {takes}."
            faults.append(FieldError("unknown_parameter", name[:MAX_NAME], detail))
    if faults:
        raise invalid(faults)


async def only_known_parts(request: Request) -> None:
    """Raise Invalid for each part of a multipart form that the route does not declare or that comes twice."""
    route = request.scope["route"]
    known = {field.alias for field in route.dependant.body_params}
    form = await request.form()  # read already: the framework keeps it at the request
    faults = [*check_form(form)]
    for name in form if not faults else ():
        if name not in known:
            detail = f"There is no field {name[:MAX_NAME]!r} here; there are: {', '.join(sorted(known))}."
            faults.append(FieldError("unknown_field", pointer([name[:MAX_NAME]]), detail))
        elif len(form.getlist(name)) > 1:
            faults.append(FieldError("invalid_value", pointer([name]), f"One {name} a request."))
    if faults:
        raise invalid(faults)


def _parameters(route: APIRoute) -> tuple[set[str], set[str]]:
    """Names of the query parameters of a route, and of those that are objects, given as `name[key]=value`."""
    documented = (route.openapi_extra or {}).get("parameters", [])
    deep = {one["name"] for one in documented if one["in"] == "query" and one.get("style") == "deepObject"}
    return {field.alias for field in route.dependant.query_params}, deep
