"""Lets nobody past without a key, as soon as any key exists: unknown paths included, bodies unread.

It stands before routing, so a route cannot be forgotten. The only paths open to all are named here.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.problems import Forbidden, Problem, Unauthorized, Unavailable, problem_response
from store.db.database import DATABASE_AWAY

PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})

Authenticate = Callable[[str | None], object | None]
"""The caller for a bearer token (None: none was sent), or None where the token opens nothing."""


class AuthenticationMiddleware:
    """Puts what `authenticate` returns at `request.state.caller`."""

    def __init__(self, app: ASGIApp, *, authenticate: Authenticate) -> None:
        self.app = app
        self.authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self.app(scope, receive, send)
            return
        problem = await self._admit(scope)
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await problem_response(scope, problem)(scope, receive, send)

    async def _admit(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else None
        try:
            # In a thread: it asks the database.
            caller = await anyio.to_thread.run_sync(self.authenticate, given or None)
        except DATABASE_AWAY:
            return Unavailable("The database does not answer just now.", code="database_unavailable")
        if caller is None:
            reason = "This key is not valid." if given else "A key is needed: send it as `Authorization: Bearer <key>`."
            return Unauthorized(reason)
        if not given and _is_cross_origin(headers):
            # Without keys the loopback is the only guard, and a page in the user's own browser is behind it.
            return Forbidden("Pages of other sites may not call this service.", code="cross_origin")
        scope.setdefault("state", {})["caller"] = caller
        return None


def _is_cross_origin(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host", "")
