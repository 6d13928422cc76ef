"""Who is calling. Without any key the service is the local user's alone; with one, every caller needs one."""

from __future__ import annotations

import functools
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.deps import Services
from api.http.problems import Forbidden
from store.api_keys import KeyRepository
from store.db.database import DATABASE_AWAY

log = logging.getLogger(__name__)

ADMIN = "admin"
LOCAL_OWNER = "local"
"""Owner of what is made without keys and of what the bootstrap key makes: a service given keys later keeps its jobs."""


@dataclass(frozen=True, slots=True)
class Caller:
    owner_id: str
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.scopes


LOCAL = Caller(LOCAL_OWNER, frozenset({ADMIN}))


def any_key_exists(services: Services) -> bool:
    """Whether any key could open this service. Raises sqlalchemy.exc.DBAPIError without a database."""
    if services.settings.bootstrap_api_key is not None:
        return True
    with services.database.read() as session:
        return KeyRepository(session, b"").any_usable()


def authenticator(services: Services) -> Callable[[str | None], Caller | None]:
    """The function that turns a bearer token into a caller, or None where it opens nothing."""
    secret = functools.cache(services.settings.secret)
    bootstrap = services.settings.bootstrap_api_key

    def authenticate(token: str | None) -> Caller | None:
        # Beyond the loopback there is no caller without a key, whatever became of the last one.
        if services.settings.is_loopback and not any_key_exists(services):
            return LOCAL
        if token is None:
            return None
        if bootstrap is not None and hmac.compare_digest(bootstrap.get_secret_value().encode(), token.encode()):
            return LOCAL
        with services.database.read() as session:
            keys = KeyRepository(session, secret())
            key = keys.authenticate(token)
            if key is None:
                return None
            stale = keys.needs_touch(key)
        if stale:
            try:
                with services.database.write() as session:
                    KeyRepository(session, secret()).touch(key.id)
            except DATABASE_AWAY as error:
                log.warning("the last use of key %s was not noted: %s", key.id, error)
        return Caller(key.owner_id, frozenset(key.scopes))

    return authenticate


async def _caller(request: Request) -> Caller:
    found: Caller = request.state.caller
    return found


async def _admin(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    if not caller.is_admin:
        raise Forbidden("This needs a key with the scope admin.", code="admin_only")
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]
AdminDep = Annotated[Caller, Depends(_admin)]
