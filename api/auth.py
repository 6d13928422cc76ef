"""Who is calling. Until there is a first key the service is the local user's alone; ever after a caller needs one."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import hmac
import logging
from dataclasses import dataclass
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, Request

from api.http.problems import Forbidden
from store.api_keys import ADMIN, TOUCH_SECONDS, KeyRepository, KeyRequirement, digest_of
from store.db.database import DATABASE_AWAY, Database
from store.db.lookups import Answer, KeyRow, Lookups, Question
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


@dataclass(frozen=True, slots=True)
class Polled:
    """What a request asks for and nothing else, where that is one job or the caller's newest ones."""

    job_id: str | None = None
    newest: int | None = None


class Authenticator:
    """Turns a bearer token into a caller."""

    def __init__(self, settings: Settings, database: Database, lookups: Lookups) -> None:
        self._database = database
        self._lookups = lookups
        self._secret = functools.cache(settings.secret)
        self._bootstrap = settings.bootstrap_api_key
        self._touched: dict[str, asyncio.Future[None]] = {}
        self.keys = KeyRequirement(settings, database)

    async def __call__(self, token: str | None, polled: Polled | None = None) -> tuple[Caller | None, Answer | None]:
        """The caller, None where the token opens nothing; and what was found of `polled`, asked in the same breath.

        Raises one of ``DATABASE_AWAY`` without a database.
        """
        required = self.keys.remembered()
        if required is None:
            required = await anyio.to_thread.run_sync(self.keys.required)
        caller = digest = None
        if not required:
            caller = LOCAL
        elif token is not None and self._is_bootstrap(token):
            caller = BOOTSTRAP
        elif token is None or (digest := digest_of(token, self._secret())) is None:
            return None, None
        elif polled is None:
            polled = Polled()
        if polled is None:
            return caller, None
        owner_id = caller.owner_id if caller is not None else None
        answer = await self._lookups.ask(Question(digest, owner_id, polled.job_id, polled.newest))
        if answer.key is not None:
            caller = Caller(answer.key.owner_id, frozenset(answer.key.scopes))
            self._touch(answer.key, answer.now)
        return caller, answer

    def _is_bootstrap(self, token: str) -> bool:
        bootstrap = self._bootstrap
        return bootstrap is not None and hmac.compare_digest(bootstrap.get_secret_value().encode(), token.encode())

    def _touch(self, key: KeyRow, now: dt.datetime) -> None:
        """Note the use of a key, to about a minute. Nobody waits for it: it waits itself for those who write."""
        stale = key.last_used_at is None or (now - key.last_used_at).total_seconds() >= TOUCH_SECONDS
        if stale and key.id not in self._touched:
            touching = asyncio.get_running_loop().run_in_executor(None, self._write_touch, key.id)
            self._touched[key.id] = touching
            touching.add_done_callback(lambda _: self._touched.pop(key.id, None))

    def _write_touch(self, key_id: str) -> None:
        try:
            with self._database.write() as session:
                KeyRepository(session, self._secret()).touch(key_id)
        except DATABASE_AWAY as error:
            log.warning("the last use of key %s was not noted: %s", key_id, error)


async def _caller(request: Request) -> Caller:
    found: Caller = request.state.caller
    return found


async def _admin(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
    if not caller.is_admin:
        raise Forbidden("This needs a key with the scope admin.", code="admin_only")
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]
AdminDep = Annotated[Caller, Depends(_admin)]
