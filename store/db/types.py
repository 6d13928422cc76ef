"""Column types that read the same from SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
import enum
import re
from typing import Any, TypeVar, cast

from sqlalchemy import JSON, DateTime, Dialect, String
from sqlalchemy.types import TypeDecorator

from minillm_core.spec.versions import Versioned

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

E = TypeVar("E", bound=enum.StrEnum)

Json = JSON(none_as_null=True)
"""JSON text; Python's None is SQL NULL. Assign a new value to change it: changes inside go unseen."""


class VersionedJson(TypeDecorator[dict[str, Any]]):
    """JSON of a kind that has versions: stored with its stamp, read as the present version has it.

    What cannot be brought up to that is read as it is stored.
    """

    impl = JSON
    cache_ok = True

    def __init__(self, kind: Versioned) -> None:
        super().__init__(none_as_null=True)
        self.kind = kind

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> dict[str, Any] | None:
        return None if value is None else self.kind.stamped(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return self.kind.shown(value)


class UtcDateTime(TypeDecorator[dt.datetime]):
    """An aware datetime, kept in UTC. Naive ones raise ValueError.

    SQLite has no time zones: there the text is UTC without an offset, which also sorts rightly.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        value = value.astimezone(dt.UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class LookupText(TypeDecorator[str]):
    """Text that rows are found by. What no database can hold (NUL, lone surrogates) finds nothing, without an error."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else _UNSTORABLE.sub("\ufffd", value)


class Word(TypeDecorator[E]):
    """A member of a StrEnum, kept as its text: a new member needs no migration.

    A word of another release is read as the text that it is, and equals no member.
    """

    impl = String(32)
    cache_ok = True

    def __init__(self, members: type[E]) -> None:
        super().__init__()
        self.members = members
        self._words = {str(member): member for member in members}

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else str(self.members(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> E | None:
        if value is None or value not in self._words:
            return cast("E | None", value)
        return self._words[value]
