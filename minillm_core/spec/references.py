"""Every model, adapter and file that a spec names, in one place.

A field that names something is marked with :class:`Names` where it is declared; whoever checks, holds, fetches or
deletes what jobs name asks :func:`references`, and so knows a new field as soon as there is one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from minillm_core.spec.base import Names, ReferenceKind


@dataclass(frozen=True)
class Reference:
    """One thing that a spec names."""

    pointer: str
    """JSON pointer to the field."""
    kind: ReferenceKind
    name: str
    """As the spec has it: `hub:...`, `path:...`, or an id."""
    purpose: str
    """What it is for: `teacher`, `student`, `dataset`, `corpus` or `calibration`."""
    revision: str | None = None
    """Of a model of the hub."""


def references(spec: BaseModel, pointer: str = "") -> Iterator[Reference]:
    """What the spec, or a part of it at ``pointer``, names, in the order of its fields."""
    for name, mark in _fields(type(spec)):
        value = getattr(spec, name)
        if isinstance(value, BaseModel):
            yield from references(value, f"{pointer}/{name}")
        elif mark is not None and value is not None:
            # An adapter has none of its own: the field belongs to the model beside it.
            revision = getattr(spec, "revision", None) if mark.kind == "model" else None
            yield Reference(f"{pointer}/{name}", mark.kind, value, mark.purpose, revision)


@functools.cache
def _fields(part: type[BaseModel]) -> list[tuple[str, Names | None]]:
    """Each field of a part of a spec, with what it says that it names."""
    return [
        (name, next((mark for mark in field.metadata if isinstance(mark, Names)), None))
        for name, field in part.model_fields.items()
    ]
