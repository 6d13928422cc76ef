"""Lets nobody past without a key, once there has been one: unknown paths included, bodies unread.

It stands before routing, so a route cannot be forgotten. The only paths open to all are named here. Until there is a
key, only requests to this machine's own names and not of another site's page are answered: see :mod:`api.http.hosts`.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import Authenticator
from api.http.hosts import AllowedHosts, from_another_site, requested_host
from api.http.problems import Forbidden, Misdirected, Problem, Unauthorized, Unavailable, problem_response
from api.jobs.polling import polled
from store.db.database import DATABASE_AWAY

PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})


class AuthenticationMiddleware:
    """Puts the caller at `request.state.caller`."""

    def __init__(self, app: ASGIApp, *, authenticate: Authenticator, hosts: AllowedHosts) -> None:
        self.app = app
        self.authenticate = authenticate
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = await self._admit(scope) if scope["type"] == "http" else None
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await problem_response(scope, problem)(scope, receive, send)

    async def _admit(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        host_is_ours = requested_host(scope, headers) in self.hosts
        if scope["path"] in PUBLIC_PATHS:
            # Probes may use any address of the machine, and must not depend on the database.
            return None if host_is_ours or self.authenticate.keys.known else _misdirected()
        if self.hosts.listed and not host_is_ours:
            return _misdirected()
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else None
        try:
            asked_for = polled(scope)
            caller, answer = await self.authenticate(given or None, asked_for)
        except DATABASE_AWAY:
            return Unavailable("The database does not answer just now.", code="database_unavailable")
        if caller is None:
            reason = "This key is not valid." if given else "A key is needed: send it as `Authorization: Bearer <key>`."
            return Unauthorized(reason)
        if not caller.by_key:
            if not host_is_ours:
                return _misdirected()
            if from_another_site(scope, headers):
                return Forbidden("Pages of other sites may not call this service.", code="cross_origin")
        scope.setdefault("state", {}).update(caller=caller, answer=answer, polled=asked_for)
        return None


def _misdirected() -> Misdirected:
    return Misdirected(
        "This service does not answer to the name in the Host header. Ask it as localhost, or list the name in "
        "MINILLM_ALLOWED_HOSTS.",
        code="host_not_allowed",
        param="Host",
    )
