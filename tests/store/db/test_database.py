"""Sessions, clock and fork."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from store.db import schema
from store.db.database import Database
from store.workers import WorkerRepository
from tests.store import scenes


def test_write_rolls_back_on_error(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as session:
        WorkerRepository(session).register(host="h", pid=1, heartbeat_seconds=5)
        raise RuntimeError
    with database.read() as session:
        assert WorkerRepository(session).list() == []


def test_waits_on_postgresql_are_bounded(database: Database) -> None:
    if database.dialect != "postgresql":
        pytest.skip("SQLite has its busy timeout")
    with database.read() as session:
        waits = [
            session.scalar(text(f"SHOW {name}")) for name in ("lock_timeout", "idle_in_transaction_session_timeout")
        ]
    assert waits == ["30s", "30s"]
    given = Database(f"{database.url.render_as_string(hide_password=False)}?options=-c%20lock_timeout%3D1s")
    with given.read() as session:
        assert session.scalar(text("SHOW lock_timeout")) == "1s"
    given.dispose()


def test_read_cannot_write_and_the_next_write_can(database: Database) -> None:
    for _ in range(2):
        with pytest.raises(DBAPIError), database.read() as session:
            WorkerRepository(session).register(host="h", pid=1, heartbeat_seconds=5)
        with database.write() as session:
            WorkerRepository(session).register(host="h", pid=1, heartbeat_seconds=5)


def test_read_sees_one_state(database: Database) -> None:
    with database.read() as session:
        assert WorkerRepository(session).list() == []
        with database.write() as other:
            WorkerRepository(other).register(host="h", pid=1, heartbeat_seconds=5)
        assert WorkerRepository(session).list() == []
    with database.read() as session:
        assert len(WorkerRepository(session).list()) == 1


def test_clock_is_aware_and_moves(database: Database) -> None:
    with database.write() as session:
        first = database.now(session)
        session.execute(text("SELECT 1"))
        second = database.now(session)
    assert first.utcoffset() == dt.timedelta(0) and second >= first
    assert abs((first - dt.datetime.now(dt.UTC)).total_seconds()) < 60


def test_times_come_back_as_they_went(database: Database) -> None:
    time = dt.datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    with database.write() as session:
        worker = WorkerRepository(session).register(host="h", pid=1, heartbeat_seconds=5)
        worker.started_at = time
    with database.read() as session:
        read = WorkerRepository(session).get(worker.id).started_at
    assert read == time and read.utcoffset() == dt.timedelta(0)
    with pytest.raises(Exception, match="without a zone"), database.write() as session:
        WorkerRepository(session).get(worker.id).started_at = dt.datetime(2026, 1, 1)


def test_a_forked_child_has_its_own_connections(database: Database) -> None:
    job_id = scenes.make_job(database)
    with database.read() as session:  # the parent's connection is open while it forks
        session.execute(text("SELECT 1"))
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                scenes.take(database, job_id)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        session.execute(text("SELECT 1"))
    assert scenes.row(database, job_id).attempt == 1


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y"])
def test_refused_urls(url: str) -> None:
    with pytest.raises((ValueError, ModuleNotFoundError)):
        Database(url)


def test_migrate_command(tmp_path: Path) -> None:
    import subprocess
    import sys

    url = f"sqlite:///{tmp_path / 'x.db'}"
    run = subprocess.run(
        [sys.executable, "-m", "migrations"],
        env={**os.environ, "MINILLM_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    database = Database(url)
    assert schema.at_head(database.engine)
    database.dispose()
