"""Makes API keys."""

from __future__ import annotations

from sqlalchemy.orm import Session

from api.auth import Caller
from api.http.problems import Invalid
from api.keys.schemas import KeyIn
from store.api_keys import ADMIN, KeyRepository, require_keys
from store.db.clock import database_now
from store.db.tables import ApiKey
from store.settings import Settings


def create(session: Session, settings: Settings, wanted: KeyIn, caller: Caller) -> tuple[ApiKey, str]:
    """The row and the key itself, which is not kept. From the first key on every request needs one. Raises Invalid."""
    if wanted.expires_at is not None and wanted.expires_at <= database_now(session):
        raise Invalid("The key would have expired already.", param="/expires_at")
    if ADMIN not in wanted.scopes and not caller.by_key:
        raise Invalid("The first key must have the scope admin, or nobody could make another.", param="/scopes")
    require_keys(settings)
    return KeyRepository(session, settings.secret()).create(
        owner_id=wanted.owner_id or caller.owner_id,
        name=wanted.name,
        scopes=wanted.scopes,
        expires_at=wanted.expires_at,
    )
