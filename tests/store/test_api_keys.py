from __future__ import annotations

import datetime as dt

import pytest
from sqlalchemy import select

from store.api_keys import PREFIX, KeyRepository, new_token, well_formed
from store.db.database import Database
from store.db.errors import NotFound
from store.db.tables import ApiKey

SECRET = b"s" * 32


def test_checksum_tells_typing_errors() -> None:
    token = new_token()
    assert token.startswith(PREFIX) and well_formed(token)
    for position in range(len(PREFIX), len(token)):
        wrong = token[:position] + ("A" if token[position] != "A" else "B") + token[position + 1 :]
        assert not well_formed(wrong)
    assert not well_formed(token[:-1]) and not well_formed(token + "é")


def test_authenticate_and_revoke(database: Database) -> None:
    with database.write() as session:
        keys = KeyRepository(session, SECRET)
        assert not keys.any_usable()
        key, token = keys.create(owner_id="o", name="n", scopes=["jobs"])
        assert keys.any_usable()
        assert keys.authenticate(token) is key
        assert keys.authenticate(new_token()) is None
        assert KeyRepository(session, b"t" * 32).authenticate(token) is None
        assert keys.needs_touch(key)
        keys.touch(key.id)
        assert not keys.needs_touch(key)
        with pytest.raises(NotFound):
            keys.get("someone-else", key.id)
        keys.revoke(key)
        assert keys.authenticate(token) is None and not keys.any_usable()


def test_expiry(database: Database) -> None:
    with database.write() as session:
        keys = KeyRepository(session, SECRET)
        past = database.now(session) - dt.timedelta(seconds=1)
        _, token = keys.create(owner_id="o", name="n", expires_at=past)
        assert keys.authenticate(token) is None


def test_no_plaintext_in_the_database(database: Database) -> None:
    with database.write() as session:
        _, token = KeyRepository(session, SECRET).create(owner_id="o", name="n")
        row = session.scalars(select(ApiKey)).one()
        kept = " ".join(str(getattr(row, column.key)) for column in ApiKey.__table__.columns)
        assert token not in kept and token[len(PREFIX) + 4 :] not in kept
