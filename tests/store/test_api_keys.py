from __future__ import annotations

import pytest
from sqlalchemy import select

from store.api_keys import PREFIX, KeyRepository, digest_of, new_token, well_formed
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


def test_what_is_kept_of_a_key(database: Database) -> None:
    with database.write() as session:
        keys = KeyRepository(session, SECRET)
        assert not keys.any_usable()
        key, token = keys.create(owner_id="o", name="n", scopes=["jobs"])
        assert keys.any_usable()
        assert digest_of(token, SECRET) == key.digest != digest_of(token, b"t" * 32)
        assert digest_of("mllm_no-key", SECRET) is None
        keys.touch(key.id)
        assert key.last_used_at is not None
        with pytest.raises(NotFound):
            keys.get("someone-else", key.id)
        keys.revoke(key)
        assert not keys.any_usable()


def test_no_plaintext_in_the_database(database: Database) -> None:
    with database.write() as session:
        _, token = KeyRepository(session, SECRET).create(owner_id="o", name="n")
        row = session.scalars(select(ApiKey)).one()
        kept = " ".join(str(getattr(row, column.key)) for column in ApiKey.__table__.columns)
        assert token not in kept and token[len(PREFIX) + 4 :] not in kept
