"""The Idempotency-Key of a request: sent twice, it gets the answer of the first."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

from fastapi import Header
from pydantic import BaseModel
from sqlalchemy.orm import Session

from store.idempotency import IdempotencyRepository, Replay

_PRINTABLE = r"^[\x21-\x7e]+$"

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        pattern=_PRINTABLE,
        description="Makes a repeated request one job: within 24 hours the same key gets the first answer.",
    ),
]


@dataclass(frozen=True)
class Once:
    """What a request does at most once: its key, with what the key is scoped to and the content it came with."""

    owner_id: str
    path: str
    key: str | None
    """None: the request has no key, and each such request is a first one."""
    content: BaseModel

    def earlier(self, session: Session) -> Replay | None:
        """What the first request with this key was answered, where it has been; opens no write transaction."""
        if self.key is None:
            return None
        return IdempotencyRepository(session).find(**self._scope, fingerprint=self._fingerprint)

    def begin(self, session: Session) -> Replay | None:
        """None: this is the first request, which does its work in this transaction and then calls `complete`.

        Of two at the same time the second waits here for the first and gets its answer.
        """
        if self.key is None:
            return None
        return IdempotencyRepository(session).begin(**self._scope, fingerprint=self._fingerprint)

    def complete(self, session: Session, status: int, body: str) -> None:
        if self.key is not None:
            IdempotencyRepository(session).complete(**self._scope, status=status, body=body)

    @property
    def _scope(self) -> dict[str, str]:
        assert self.key is not None
        return {"owner_id": self.owner_id, "method": "POST", "path": self.path, "key": self.key}

    @property
    def _fingerprint(self) -> str:
        return hashlib.sha256(self.content.model_dump_json().encode()).hexdigest()
