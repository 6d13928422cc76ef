from __future__ import annotations

import datetime as dt

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from store.db.database import Database
from store.db.errors import IdempotencyInProgress, IdempotencyMismatch
from store.db.tables import IdempotencyKey
from store.idempotency import IdempotencyRepository, Replay
from tests.fixtures.sweep import sweep

REQUEST = {"owner_id": "o", "method": "POST", "path": "/v1/jobs", "key": "k"}


def age(session: Session, time: dt.timedelta) -> None:
    session.execute(update(IdempotencyKey).values(expires_at=Database.now(session) - time))


def test_replay_and_mismatch(database: Database) -> None:
    with database.write() as session:
        keys = IdempotencyRepository(session)
        assert IdempotencyRepository(session).begin(**REQUEST, fingerprint="f") is None
        keys.complete(**REQUEST, status=201, body="{}")
    with database.write() as session:
        keys = IdempotencyRepository(session)
        assert keys.begin(**REQUEST, fingerprint="f") == keys.find(**REQUEST, fingerprint="f") == Replay(201, "{}")
        for ask in (keys.begin, keys.find):
            with pytest.raises(IdempotencyMismatch):
                ask(**REQUEST, fingerprint="other")
        for scope in ({"owner_id": "p"}, {"method": "PUT"}, {"path": "/v1/files"}, {"key": "l"}):
            assert keys.begin(**{**REQUEST, **scope}, fingerprint="f") is None


def test_unanswered(database: Database) -> None:
    with database.write() as session:
        IdempotencyRepository(session).begin(**REQUEST, fingerprint="f")
    with pytest.raises(IdempotencyInProgress), database.write() as session:
        IdempotencyRepository(session).begin(**REQUEST, fingerprint="f")
    with pytest.raises(IdempotencyInProgress), database.read() as session:
        IdempotencyRepository(session).find(**REQUEST, fingerprint="f")
    with database.write() as session:
        age(session, dt.timedelta(0))  # its process died
        assert IdempotencyRepository(session).begin(**REQUEST, fingerprint="f") is None


def test_a_failed_request_leaves_no_key(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as session:
        IdempotencyRepository(session).begin(**REQUEST, fingerprint="f")
        raise RuntimeError
    with database.write() as session:
        assert IdempotencyRepository(session).begin(**REQUEST, fingerprint="f") is None


def test_swept_after_a_day(database: Database) -> None:
    with database.write() as session:
        keys = IdempotencyRepository(session)
        keys.begin(**REQUEST, fingerprint="f")
        keys.complete(**REQUEST, status=201, body="{}")
    sweep(database)
    with database.write() as session:
        assert IdempotencyRepository(session).begin(**REQUEST, fingerprint="f") is not None
        age(session, dt.timedelta(seconds=1))
    sweep(database)
    with database.write() as session:
        assert IdempotencyRepository(session).begin(**REQUEST, fingerprint="f") is None
