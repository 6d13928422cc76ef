"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): the same request twice has one effect."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from store.db.clock import database_now
from store.db.errors import IdempotencyInProgress, IdempotencyMismatch
from store.db.tables import IdempotencyKey

_KEPT = dt.timedelta(hours=24)
_ABANDONED = dt.timedelta(seconds=60)
"""A first request without an answer after so long has died."""


@dataclass(frozen=True)
class Replay:
    """The answer that the first request got."""

    status: int
    body: str


class IdempotencyRepository:
    """Keys are scoped to owner, method and path.

    ``begin`` and ``complete`` belong in the transaction that does the work: of two requests at the
    same time the second then waits for the first and gets its answer.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def find(self, *, owner_id: str, method: str, path: str, key: str, fingerprint: str) -> Replay | None:
        """What the first request was answered; None where none with this key has been. Writes nothing.

        Raises as :meth:`begin`.
        """
        fresh = IdempotencyKey.expires_at > database_now(self.session)
        return self._answer(fingerprint, *self._mine(owner_id, method, path, key), fresh)

    def begin(self, *, owner_id: str, method: str, path: str, key: str, fingerprint: str) -> Replay | None:
        """None: this is the first request, do the work and then call :meth:`complete`.

        ``fingerprint`` is a hash of the request's content. Raises IdempotencyMismatch where the key
        came with another content, IdempotencyInProgress where the first request is still at work in
        another transaction.
        """
        now = database_now(self.session)
        mine = self._mine(owner_id, method, path, key)
        self.session.execute(delete(IdempotencyKey).where(*mine, IdempotencyKey.expires_at <= now))
        insert = postgresql.insert if self.session.get_bind().dialect.name == "postgresql" else sqlite.insert
        inserted = self.session.execute(
            insert(IdempotencyKey)
            .values(
                owner_id=owner_id,
                method=method,
                path=path,
                key=key,
                fingerprint=fingerprint,
                created_at=now,
                expires_at=now + _ABANDONED,
            )
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.key)
        ).one_or_none()
        if inserted is not None:
            return None
        return self._answer(fingerprint, *mine)

    def complete(self, *, owner_id: str, method: str, path: str, key: str, status: int, body: str) -> None:
        """Keep the answer for 24 hours."""
        self.session.execute(
            update(IdempotencyKey)
            .where(*self._mine(owner_id, method, path, key))
            .values(status=status, body=body, expires_at=database_now(self.session) + _KEPT)
        )

    def _answer(self, fingerprint: str, *where: ColumnElement[bool]) -> Replay | None:
        row = self.session.execute(
            select(IdempotencyKey.fingerprint, IdempotencyKey.status, IdempotencyKey.body).where(*where)
        ).one_or_none()
        if row is None:
            return None
        if row.fingerprint != fingerprint:
            raise IdempotencyMismatch("this Idempotency-Key was used with a different request")
        if row.status is None:
            raise IdempotencyInProgress("the first request with this Idempotency-Key is still at work")
        return Replay(row.status, row.body or "")

    @staticmethod
    def _mine(owner_id: str, method: str, path: str, key: str) -> tuple[ColumnElement[bool], ...]:
        return (
            IdempotencyKey.owner_id == owner_id,
            IdempotencyKey.method == method,
            IdempotencyKey.path == path,
            IdempotencyKey.key == key,
        )
