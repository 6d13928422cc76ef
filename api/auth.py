"""Who is calling. Until there is a first key the service is the local user's alone; ever after a caller needs one."""

from __future__ import annotations

import functools
import hmac
import logging
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.http.problems import Forbidden
from store.api_keys import ADMIN, KeyRepository, KeyRequirement
from store.db.database import DATABASE_AWAY, Database
from store.settings import Settings

log = logging.getLogger(__name__)

LOCAL_OWNER = "local"
"""Owner of what is made without keys and of what the bootstrap key makes: a service given keys later keeps its jobs."""


@dataclass(frozen=True, slots=True)
class Caller:
    owner_id: str
    scopes: frozenset[str]
    by_key: bool = True
    """Whether a key says so; else being on this machine is all that was asked."""

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.scopes

    def may(self, scope: str) -> bool:
        return self.is_admin or scope in self.scopes


LOCAL = Caller(LOCAL_OWNER, frozenset({ADMIN}), by_key=False)
BOOTSTRAP = Caller(LOCAL_OWNER, frozenset({ADMIN}))


class Authenticator:
    """Turns a bearer token into a caller."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._database = database
        self._secret = functools.cache(settings.secret)
        self._bootstrap = settings.bootstrap_api_key
        self.keys = KeyRequirement(settings, database)

    def __call__(self, token: str | None) -> Caller | None:
        """The caller, or None where the token opens nothing. Raises sqlalchemy.exc.DBAPIError without a database."""
        if not self.keys.required():
            return LOCAL
        if token is None:
            return None
        bootstrap = self._bootstrap
        if bootstrap is not None and hmac.compare_digest(bootstrap.get_secret_value().encode(), token.encode()):
            return BOOTSTRAP
        with self._database.read() as session:
            keys = KeyRepository(session, self._secret())
            key = keys.authenticate(token)
            if key is None:
                return None
            stale = keys.needs_touch(key)
        if stale:
            try:
                with self._database.write() as session:
                    KeyRepository(session, self._secret()).touch(key.id)
            except DATABASE_AWAY as error:
                log.warning("the last use of key %s was not noted: %s", key.id, error)
        return Caller(key.owner_id, frozenset(key.scopes))


async def _caller(request: Request) -> Caller:
    found: Caller = request.state.caller
    return found


async def _admin(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    if not caller.is_admin:
        raise Forbidden("This needs a key with the scope admin.", code="admin_only")
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]
AdminDep = Annotated[Caller, Depends(_admin)]
