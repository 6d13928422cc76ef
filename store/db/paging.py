"""Keyset pages over ``(created_at, id)``, with ids as cursors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Select, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from store.db.errors import NotFound
from store.db.ids import Prefix, is_id

Row = TypeVar("Row")
Order = Literal["asc", "desc"]
Rows = Select[*tuple[Any, ...]]
"""A statement that selects whatever."""


@dataclass(frozen=True)
class Page(Generic[Row]):
    """One page; ``has_more`` says whether there is another in the direction that was asked for."""

    items: Sequence[Row]
    has_more: bool


def page(
    session: Session,
    statement: Rows,
    created_at: InstrumentedAttribute[Any],
    id: InstrumentedAttribute[str],
    *,
    prefix: Prefix,
    within: ColumnElement[bool] | None = None,
    limit: int = 20,
    order: Order = "desc",
    after: str | None = None,
    before: str | None = None,
    fetch: Callable[[Rows], Iterable[Row]] | None = None,
) -> Page[Row]:
    """Up to ``limit`` rows of ``statement``, newest first or (``asc``) oldest first.

    ``fetch`` reads them; what is selected is one table's rows where it is left out.

    ``after`` gives the rows that follow that id in the order asked for, ``before`` the ones right
    ahead of it. The id is a position: its row may be gone by now, or left out by the statement's filters.
    Raises ValueError where both are given and NotFound where the cursor is no id with ``prefix``, or that of a row
    that is not ``within`` the list's owner.
    """
    if after is not None and before is not None:
        raise ValueError("after and before exclude each other")
    cursor = after or before
    descending = (order == "desc") != (before is not None)
    if cursor is not None:
        row = session.scalar(select(created_at).where(id == cursor, *(() if within is None else (within,))))
        if row is not None:
            key, edge = tuple_(created_at, id), tuple_(row, cursor)
            statement = statement.where(key < edge if descending else key > edge)
        elif is_id(cursor, prefix) and (within is None or session.scalar(select(id).where(id == cursor)) is None):
            # Gone, and its time with it; ids rise with time as well.
            statement = statement.where(id < cursor if descending else id > cursor)
        else:
            raise NotFound("cursor", cursor)
    if descending:
        statement = statement.order_by(created_at.desc(), id.desc())
    else:
        statement = statement.order_by(created_at.asc(), id.asc())
    rows = list((fetch or session.scalars)(statement.limit(limit + 1)))
    has_more = len(rows) > limit
    rows = rows[:limit]
    if before is not None:
        rows.reverse()
    return Page(rows, has_more)
