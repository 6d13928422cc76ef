"""/v1/api_keys: made once, shown once, revoked at once. All of it needs the scope admin."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Response

from api.auth import AdminDep
from api.deps import ReadSession, ServicesDep, TransactionRoute, WriteSession
from api.http.openapi import problems
from api.http.pagination import After, Before, Limit, Order, Page, cursor_problems, page
from api.keys import service
from api.keys.schemas import KeyIn, KeyOut, NewKeyOut
from store.api_keys import KeyRepository

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["api keys"])

_EXAMPLES = {"team": {"summary": "A key for a team", "value": {"name": "search team", "owner_id": "search"}}}


@router.post("/api_keys", status_code=201, responses=problems(400, 401, 403, 422, 503), summary="Make an API key")
def api_keys_create(
    wanted: Annotated[KeyIn, Body(openapi_examples=_EXAMPLES)],
    caller: AdminDep,
    services: ServicesDep,
    session: WriteSession,
    response: Response,
) -> NewKeyOut:
    """From the first key on, every request needs one: the first must be able to make others, so it is an admin's."""
    row, token = service.create(session, services.settings, wanted, caller)
    response.headers["Location"] = f"/v1/api_keys/{row.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewKeyOut(**KeyOut.model_validate(row).model_dump(), key=token)


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
    return page(found.items, found.has_more, KeyOut.model_validate, lambda key: key.id)


@router.get("/api_keys/{key_id}", responses=problems(401, 403, 404, 503), summary="Get an API key's description")
def api_keys_get(key_id: str, caller: AdminDep, services: ServicesDep, session: ReadSession) -> KeyOut:
    return KeyOut.model_validate(KeyRepository(session, services.settings.secret()).get(None, key_id))


@router.delete(
    "/api_keys/{key_id}", status_code=204, responses=problems(401, 403, 404, 503), summary="Revoke an API key"
)
def api_keys_revoke(key_id: str, caller: AdminDep, services: ServicesDep, session: WriteSession) -> None:
    """Refused from the next request on. Again is no error."""
    keys = KeyRepository(session, services.settings.secret())
    keys.revoke(keys.get(None, key_id))
