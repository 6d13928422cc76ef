"""Stored JSON of every release: each kind of document has a version, and older ones are brought up when they are read.

A document says its version in a field of its own (`spec_version`, ...); one that says none is of version 1, from before
versions were kept. A change of a kind's shape adds one upcaster here, and everything that reads goes on reading what
older releases wrote. What only shows a document (:meth:`Versioned.shown`) never judges it: one that cannot be brought
up, of a newer release or damaged, is shown as it is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minillm_core.spec.job import JobSpec, parse_spec

Document = dict[str, Any]
Upcaster = Callable[[Document], Document]


class UnknownVersion(ValueError):
    """The document is of a release that this one does not know."""


@dataclass(frozen=True)
class Versioned:
    """One kind of stored JSON."""

    name: str
    upcasters: tuple[Upcaster, ...] = ()
    """The first makes a document of version 2 of one of version 1, and so on. They return a new document."""

    @property
    def version(self) -> int:
        return 1 + len(self.upcasters)

    @property
    def field(self) -> str:
        return f"{self.name}_version"

    def stamped(self, document: Document) -> Document:
        """The document with the present version, as it is to be stored."""
        return {self.field: self.version, **document}

    def present(self, document: Document) -> Document:
        """The document as the present version has it, without its stamp.

        Raises UnknownVersion; an upcaster may raise anything where the document is not what its version says.
        """
        body = dict(document)
        version = body.pop(self.field, 1)
        if not isinstance(version, int) or not 1 <= version <= self.version:
            raise UnknownVersion(
                f"this is version {version} of a {self.name}; this release knows those up to {self.version}"
            )
        for upcast in self.upcasters[version - 1 :]:
            body = upcast(body)
        return body

    def shown(self, document: Any) -> Any:
        """The same, and what is stored itself where there is no such thing."""
        if not isinstance(document, dict):
            return document
        try:
            return self.present(document)
        except Exception:  # of another release, or damaged: an upcaster may fail in any way, and what is there is shown
            return document


SPEC = Versioned("spec")
FAILURE = Versioned("failure")
REPORT = Versioned("report")
MANIFEST = Versioned("manifest")
"""Its first version goes without a stamp: manifests are files, and a release that knows no versions reads them too."""


def dump_spec(spec: JobSpec, *, indent: int | None = None) -> str:
    """The text to store."""
    return json.dumps(SPEC.stamped(spec.model_dump(mode="json")), ensure_ascii=False, indent=indent)


def read_spec(text: str) -> JobSpec:
    """The spec of a stored text. Raises pydantic.ValidationError and UnknownVersion, both of them ValueErrors."""
    document = _parsed(text)
    if not isinstance(document, dict):
        return JobSpec.model_validate_json(text)  # which says what is wrong with it
    return parse_spec(SPEC.present(document))


def shown_spec(text: str) -> Document:
    """What a stored text says, whatever it is; {} where it says nothing that has fields."""
    document = SPEC.shown(_parsed(text))
    return document if isinstance(document, dict) else {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
