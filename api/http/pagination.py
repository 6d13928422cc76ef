"""Lists: ids are the cursors, and a page is `{object, data, has_more, first_id, last_id}`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Query
from pydantic_core import to_json

from api.http.problems import Invalid
from api.http.schema import Out
from store.db.errors import NotFound

Item = TypeVar("Item")
Row = TypeVar("Row")


class Page(Out, Generic[Item]):
    """One page of a list. Pass `last_id` as `after` for the next one while `has_more`."""

    object: Literal["list"]
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None


DEFAULT_LIMIT, MAX_LIMIT = 20, 100
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Most items of a page.")]
After = Annotated[str | None, Query(max_length=64, description="Cursor: the id after which the page starts.")]
Before = Annotated[str | None, Query(max_length=64, description="Cursor: the id before which the page ends.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By time of creation.")]


@contextlib.contextmanager
def cursor_problems(after: str | None, before: str | None) -> Iterator[None]:
    """Says of a cursor that is none which parameter it came in."""
    if after is not None and before is not None:
        raise Invalid("Give after or before, not both.", param="before")
    try:
        yield
    except NotFound as error:
        name = "after" if after is not None else "before"
        raise Invalid(f"{error.id!r} is no id of this list.", code="unknown_cursor", param=name) from None


def page(
    rows: Sequence[Row], has_more: bool, to_item: Callable[[Row], Item], cursor: Callable[[Item], str]
) -> Page[Item]:
    items = [to_item(row) for row in rows]
    return Page(
        object="list",
        data=items,
        has_more=has_more,
        first_id=cursor(items[0]) if items else None,
        last_id=cursor(items[-1]) if items else None,
    )


def page_of_json(items: Sequence[bytes], has_more: bool, ids: Sequence[str]) -> bytes:
    """The same as a :class:`Page`, of items that are JSON already."""
    first_id, last_id = (ids[0], ids[-1]) if ids else (None, None)
    return b'{"object":"list","data":[%b],"has_more":%b,"first_id":%b,"last_id":%b}' % (
        b",".join(items), to_json(has_more), to_json(first_id), to_json(last_id)
    )  # fmt: skip
