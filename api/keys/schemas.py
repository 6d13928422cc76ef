"""API keys as they come in and go out."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from api.http.schema import In, Out, Time

OWNER_ID = r"^[A-Za-z0-9_.-]{1,40}$"


class KeyIn(In):
    name: str = Field(min_length=1, max_length=200)
    owner_id: str | None = Field(None, max_length=40, pattern=OWNER_ID)
    """Whose jobs, files and students the key sees; the caller's own when left out."""
    scopes: list[Literal["admin", "jobs:priority"]] = Field(default_factory=list, max_length=2)
    """`admin`: may do everything, also make and revoke keys and drain workers. `jobs:priority`: may give its jobs a
    priority above 0, so that they run before those of others."""
    expires_at: Time | None = None


class KeyOut(Out):
    id: str
    object: Literal["api_key"] = "api_key"
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
