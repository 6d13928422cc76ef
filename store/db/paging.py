"""Keyset pages over ``(created_at, id)``, with ids as cursors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from store.db.errors import NotFound

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
    limit: int = 20,
    order: Order = "desc",
    after: str | None = None,
    before: str | None = None,
    fetch: Callable[[Rows], Iterable[Row]] | None = None,
) -> Page[Row]:
    """Up to ``limit`` rows of ``statement``, newest first or (``asc``) oldest first.

    ``fetch`` reads them; what is selected is one table's rows where it is left out.

    ``after`` gives the rows that follow that id in the order asked for, ``before`` the ones right
    ahead of it. Raises ValueError where both are given and NotFound where the cursor is no row of
    the statement's unfiltered owner.
    """
    if after is not None and before is not None:
        raise ValueError("after and before exclude each other")
    cursor = after or before
    descending = (order == "desc") != (before is not None)
    if cursor is not None:
        at = session.execute(select(created_at).where(id == cursor)).scalar_one_or_none()
        if at is None:
            raise NotFound("cursor", cursor)
        key = tuple_(created_at, id)
        edge = tuple_(at, cursor)
        statement = statement.where(key < edge if descending else key > edge)
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
