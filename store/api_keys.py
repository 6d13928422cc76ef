"""API keys: a prefix, 190 random bits and a checksum; the database holds an HMAC alone."""

from __future__ import annotations

import datetime as dt
import hmac
import logging
import secrets
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from store.db.clock import database_now
from store.db.database import Database
from store.db.errors import NotFound
from store.db.ids import new_id
from store.db.paging import Order, Page, page
from store.db.printable import printable
from store.db.tables import ApiKey
from store.settings import Settings

PREFIX = "mllm_"
ADMIN = "admin"
PRIORITY = "jobs:priority"
SCOPES = (ADMIN, PRIORITY)
"""What a key may be allowed beyond its owner's own: to administer; to put jobs before those of others."""
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_LENGTH = 32
_CHECKSUM_LENGTH = 6
TOUCH_SECONDS = 60
_MARKER = "keys-required"
_ASK_AGAIN_SECONDS = 1.0

logger = logging.getLogger(__name__)


def new_token() -> str:
    """A fresh key: ``mllm_``, 32 random base-62 characters, 6 of checksum."""
    random = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LENGTH))
    return PREFIX + random + _checksum(random)


def well_formed(token: str) -> bool:
    """Whether a token with our prefix has a right checksum: a typing error is told without the database."""
    if not token.isascii() or len(token) != len(PREFIX) + _RANDOM_LENGTH + _CHECKSUM_LENGTH:
        return False
    body = token[len(PREFIX) :]
    return hmac.compare_digest(_checksum(body[:_RANDOM_LENGTH]), body[_RANDOM_LENGTH:])


class KeyRequirement:
    """Whether callers need a key: for good from the first key on, whatever became of it.

    Two witnesses say that there was one: a row in the database, and a marker in the data folder, which outlives rows
    that are deleted and a database that is restored. Either will do. A service that others can reach is never open.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        """Raises OSError where a bootstrap key is set and the data folder cannot say so for later."""
        self._marker = _marker(settings)
        self._settings = settings
        self._database = database
        self._asked_at = float("-inf")
        if settings.bootstrap_api_key is not None:
            require_keys(settings)
        self._known = not settings.is_loopback

    @property
    def known(self) -> bool:
        """Whether one is needed for all that can be told without the database."""
        self._known = self._known or self._marker.exists()
        return self._known

    def remembered(self) -> bool | None:
        """What :meth:`required` would say, where it would not ask the database."""
        if self.known:
            return True
        return False if time.monotonic() < self._asked_at + _ASK_AGAIN_SECONDS else None

    def required(self) -> bool:
        """Raises sqlalchemy.exc.DBAPIError without a database. A key made elsewhere is seen within a second."""
        remembered = self.remembered()
        if remembered is not None:
            return remembered
        asked_at = time.monotonic()
        with self._database.read() as session:
            found = KeyRepository(session, b"").any()
        self._asked_at = asked_at
        if not found:
            return False
        self._known = True
        try:
            require_keys(self._settings)
        except OSError as error:
            logger.warning("the data folder does not say that this service has keys: %s", error)
        return True


def require_keys(settings: Settings) -> None:
    """Close the service to callers without a key, for good. Again is no error. Raises OSError."""
    marker = _marker(settings)
    if not marker.exists():
        marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker.write_text("This service has had an API key: it answers nobody without one. See docs/operations.md.\n")


def _marker(settings: Settings) -> Path:
    return settings.data_dir / _MARKER


def digest_of(token: str, secret: bytes) -> str | None:
    """What the database keeps of a key, by ``Settings.secret()``; None for what cannot be one."""
    return _digest(token, secret) if token.startswith(PREFIX) and well_formed(token) else None


class KeyRepository:
    """API keys; ``secret`` is ``Settings.secret()`` and keys the HMAC."""

    def __init__(self, session: Session, secret: bytes) -> None:
        self.session = session
        self._secret = secret

    def create(
        self,
        *,
        owner_id: str,
        name: str,
        scopes: Sequence[str] = (),
        expires_at: dt.datetime | None = None,
    ) -> tuple[ApiKey, str]:
        """The row and the key itself, which nothing can show again."""
        token = new_token()
        row = ApiKey(
            id=new_id("key"),
            owner_id=owner_id,
            name=printable(name),
            hint=token[: len(PREFIX) + 4],
            digest=_digest(token, self._secret),
            scopes=list(scopes),
            expires_at=expires_at,
            created_at=database_now(self.session),
        )
        self.session.add(row)
        self.session.flush()
        return row, token

    def touch(self, key_id: str) -> None:
        """Note that the key was used just now."""
        row = self.session.get(ApiKey, key_id)
        if row is not None:
            row.last_used_at = database_now(self.session)

    def any(self) -> bool:
        """Whether there is any key, usable or not."""
        return self.session.scalar(select(ApiKey.id).limit(1)) is not None

    def any_usable(self) -> bool:
        """Whether any key could authenticate."""
        now = database_now(self.session)
        statement = select(ApiKey.id).where(
            ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)
        )
        return self.session.scalar(statement.limit(1)) is not None

    def get(self, owner_id: str | None, key_id: str) -> ApiKey:
        """One owner's key, or (None) anyone's. Raises NotFound, also for someone else's."""
        statement = select(ApiKey).where(ApiKey.id == key_id)
        if owner_id is not None:
            statement = statement.where(ApiKey.owner_id == owner_id)
        row = self.session.scalar(statement)
        if row is None:
            raise NotFound("api_key", key_id)
        return row

    def list(
        self,
        owner_id: str | None,
        *,
        limit: int = 20,
        order: Order = "desc",
        after: str | None = None,
        before: str | None = None,
    ) -> Page[ApiKey]:
        """A page of one owner's keys, or (None) of all of them."""
        own = None if owner_id is None else ApiKey.owner_id == owner_id
        statement = select(ApiKey) if own is None else select(ApiKey).where(own)
        return page(
            self.session,
            statement,
            ApiKey.created_at,
            ApiKey.id,
            prefix="key",
            within=own,
            limit=limit,
            order=order,
            after=after,
            before=before,
        )

    def revoke(self, key: ApiKey) -> ApiKey:
        """The key is refused from the end of this transaction on. Again is no error."""
        if key.revoked_at is None:
            key.revoked_at = database_now(self.session)
            self.session.flush()
        return key


def _digest(token: str, secret: bytes) -> str:
    return hmac.digest(secret, token.encode("utf-8", errors="surrogatepass"), "sha256").hex()


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
