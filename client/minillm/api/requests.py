"""How the methods of the client ask: paths, answers with a type, lists page by page."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from minillm.errors import MinillmError
from minillm.transport import Transport
from minillm.types import Answer

PAGE_SIZE = 100
"""The most that the service puts on a page."""

Kind = TypeVar("Kind", bound=Answer)


def parsed(type_: type[Kind], body: Any) -> Kind:
    """The body as an answer of this type. Raises MinillmError where it is none."""
    try:
        return type_.of(body)
    except ValidationError as error:
        raise MinillmError(f"the service answered what is no {type_.__name__}: {error.errors()[0]['msg']}") from error


def json_of(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise MinillmError(f"{response.url} answered what is no JSON: is it the address of the service?") from error


def segment(text: str) -> str:
    """Text as one segment of a path, so that an id such as `../files` goes nowhere else."""
    if text in ("", ".", ".."):
        raise MinillmError(f"{text!r} is no id")
    return quote(text, safe="")


def query(**parameters: object) -> dict[str, str]:
    """Parameters of a URL, without those that are None."""
    return {name: str(value) for name, value in parameters.items() if value is not None}


class Pages(Iterator[Kind], Generic[Kind]):
    """Items of a list, `limit` at most, fetched page by page as they are asked for."""

    has_more = False
    """At the end of the iteration: whether the service has more than `limit` items."""

    def __init__(
        self,
        fetch: Callable[[Mapping[str, str]], Any],
        type_: type[Kind],
        *,
        limit: int | None = None,
        page_size: int | None = PAGE_SIZE,
        cursor: str | None = "id",
    ) -> None:
        """`page_size` is None for lists that take no limit, `cursor` the field by which a list goes on."""
        self._fetch = fetch
        self._type = type_
        self._limit = limit
        self._page_size = page_size
        self._cursor = cursor
        self._ends: tuple[str | None, str | None] = (None, None)
        self._items = self._read()

    def __next__(self) -> Kind:
        return next(self._items)

    def document(self) -> dict[str, Any]:
        """The list as the service would answer it on one page; to be asked for before any of it is taken."""
        items = [item.raw for item in self]
        first, last = self._ends
        return {"object": "list", "data": items, "has_more": self.has_more, "first_id": first, "last_id": last}

    def _read(self) -> Iterator[Kind]:
        left = self._limit
        position: dict[str, str] = {}
        while left is None or left > 0:
            size = self._page_size if left is None or self._page_size is None else min(left, self._page_size)
            body = self._fetch({**position, **query(limit=size)})
            if not isinstance(body, dict) or not isinstance(body.get("data"), list):
                raise MinillmError("the service answered what is no list")
            items = body["data"] if left is None else body["data"][:left]
            self.has_more = bool(body.get("has_more")) or len(items) < len(body["data"])
            last = body.get("last_id") if len(items) == len(body["data"]) else None
            if items:
                last = last or self._position(items[-1])
                self._ends = (self._ends[0] or body.get("first_id") or self._position(items[0]), last)
            for item in items:
                yield parsed(self._type, item)
            if not self.has_more or last is None:
                return
            position = {"after": str(last)}
            left = None if left is None else left - len(items)

    def _position(self, item: dict[str, Any]) -> str | None:
        return None if self._cursor is None or self._cursor not in item else str(item[self._cursor])


class Requests:
    """What the groups of methods share: one transport."""

    def __init__(self, transport: Transport, sleep: Callable[[float], None]) -> None:
        self._transport = transport
        self._sleep = sleep

    def _get(self, type_: type[Kind], path: str, **parameters: object) -> Kind:
        return parsed(type_, json_of(self._transport.request("GET", path, params=query(**parameters))))

    def _post(
        self, type_: type[Kind], path: str, body: Mapping[str, Any] | None = None, *, idempotent: bool = False
    ) -> Kind:
        return parsed(type_, json_of(self._transport.request("POST", path, json=body, idempotent=idempotent)))

    def _once(self, type_: type[Kind], path: str, body: Mapping[str, Any], idempotency_key: str | None) -> Kind:
        """A POST that may be repeated under its key."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        response = self._transport.request("POST", path, json=body, headers=headers, idempotent=True)
        return parsed(type_, json_of(response))

    def _list(
        self,
        type_: type[Kind],
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        limit: int | None = None,
        page_size: int | None = PAGE_SIZE,
        cursor: str | None = "id",
    ) -> Pages[Kind]:
        def fetch(position: Mapping[str, str]) -> Any:
            return json_of(self._transport.request("GET", path, params={**(parameters or {}), **position}))

        return Pages(fetch, type_, limit=limit, page_size=page_size, cursor=cursor)

    @staticmethod
    def _job_path(job_id: str, *more: str) -> str:
        return "/".join(["/v1/jobs", segment(job_id), *more])
