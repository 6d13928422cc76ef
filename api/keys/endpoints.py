"""/v1/api_keys: made once, shown once, revoked at once. All of it needs the scope admin."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Response
from pydantic import AwareDatetime, Field

from api.auth import AdminDep
from api.deps import ReadSession, ServicesDep, TransactionRoute, WriteSession
from api.http.openapi import problems
from api.http.pagination import After, Before, Limit, Order, Page, cursor_problems, page
from api.http.problems import Invalid
from api.http.schema import In, Out
from store.api_keys import ADMIN, KeyRepository, require_keys
from store.db.clock import database_now
from store.db.tables import ApiKey

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["api keys"])

_EXAMPLES = {"team": {"summary": "A key for a team", "value": {"name": "search team", "owner_id": "search"}}}


OWNER_ID = r"^[A-Za-z0-9_.-]{1,40}$"


class KeyIn(In):
    name: str = Field(min_length=1, max_length=200)
    owner_id: str | None = Field(None, pattern=OWNER_ID)
    """Whose jobs, files and students the key sees; the caller's own when left out."""
    scopes: list[Literal["admin", "jobs:priority"]] = Field(default_factory=list, max_length=2)
    """`admin`: may do everything, also make and revoke keys and drain workers. `jobs:priority`: may give its jobs a
    priority above 0, so that they run before those of others."""
    expires_at: AwareDatetime | None = None


class KeyOut(Out):
    id: str
    object: Literal["api_key"]
    name: str
    owner_id: str
    hint: str
    """How the key begins."""
    scopes: list[str]
    created_at: datetime
    last_used_at: datetime | None
    """To about a minute."""
    expires_at: datetime | None
    revoked_at: datetime | None


class NewKeyOut(KeyOut):
    key: str
    """The key itself, which is not kept: this is the only time it is shown."""


@router.post("/api_keys", status_code=201, responses=problems(400, 401, 403, 422, 503), summary="Make an API key")
def api_keys_create(
    wanted: Annotated[KeyIn, Body(openapi_examples=_EXAMPLES)],
    caller: AdminDep,
    services: ServicesDep,
    session: WriteSession,
    response: Response,
) -> NewKeyOut:
    """From the first key on, every request needs one: the first must be able to make others, so it is an admin's."""
    keys = KeyRepository(session, services.settings.secret())
    if wanted.expires_at is not None and wanted.expires_at <= database_now(session):
        raise Invalid("The key would have expired already.", param="/expires_at")
    if ADMIN not in wanted.scopes and not caller.by_key:
        raise Invalid("The first key must have the scope admin, or nobody could make another.", param="/scopes")
    require_keys(services.settings)
    row, token = keys.create(
        owner_id=wanted.owner_id or caller.owner_id,
        name=wanted.name,
        scopes=wanted.scopes,
        expires_at=wanted.expires_at,
    )
    response.headers["Location"] = f"/v1/api_keys/{row.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewKeyOut(**_key_out(row).model_dump(), key=token)


@router.get("/api_keys", responses=problems(401, 403, 422, 503), summary="List API keys")
def api_keys_list(
    caller: AdminDep,
    services: ServicesDep,
    session: ReadSession,
    limit: Limit = 20,
    after: After = None,
    before: Before = None,
    order: Order = "desc",
) -> Page[KeyOut]:
    with cursor_problems(after, before):
        found = KeyRepository(session, services.settings.secret()).list(
            None, limit=limit, after=after, before=before, order=order
        )
    return page(found.items, found.has_more, _key_out, lambda key: key.id)


@router.get("/api_keys/{key_id}", responses=problems(401, 403, 404, 503), summary="Get an API key's description")
def api_keys_get(key_id: str, caller: AdminDep, services: ServicesDep, session: ReadSession) -> KeyOut:
    return _key_out(KeyRepository(session, services.settings.secret()).get(None, key_id))


@router.delete(
    "/api_keys/{key_id}", status_code=204, responses=problems(401, 403, 404, 503), summary="Revoke an API key"
)
def api_keys_revoke(key_id: str, caller: AdminDep, services: ServicesDep, session: WriteSession) -> None:
    """Refused from the next request on. Again is no error."""
    keys = KeyRepository(session, services.settings.secret())
    keys.revoke(keys.get(None, key_id))


def _key_out(row: ApiKey) -> KeyOut:
    return KeyOut(
        id=row.id,
        object="api_key",
        name=row.name,
        owner_id=row.owner_id,
        hint=row.hint,
        scopes=row.scopes,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
