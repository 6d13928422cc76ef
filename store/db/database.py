"""One engine on SQLite or PostgreSQL, with read and write sessions that mean the same on both."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, NullPool, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import InterfaceError, InternalError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from store.db.clock import database_now

DATABASE_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout)
"""Errors that say nothing of the statement: a server that is gone, a session that it ended, a lock not had in time."""

_BUSY_TIMEOUT_SECONDS = 30.0
"""How long a statement waits for another's lock, on both databases."""

_IDLE_SECONDS = 2.0
"""A connection that was used so long ago is asked whether it is still there."""

_POSTGRES = {
    "connect_timeout": 10,
    # A server that vanished without a word is noticed well within a lease, not after the kernel's quarter of an hour.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    # A process that is stopped inside a transaction would otherwise hold its job's row for as long as it sleeps.
    "options": f"-c lock_timeout={_BUSY_TIMEOUT_SECONDS:g}s -c idle_in_transaction_session_timeout=30s",
}


class Database:
    """A database by its URL: ``sqlite:///path``, ``postgresql://...`` (psycopg 3).

    Sessions keep loaded attributes after the end of their block, so that an answer can be built
    from rows once the transaction is over. An instance may be used by many threads and survives a
    fork: the child opens its own connections.

    At most ``connections`` are open at a time; who needs one more waits ``wait_seconds`` for it and then gets a
    sqlalchemy.exc.TimeoutError, one of ``DATABASE_AWAY``.
    """

    def __init__(self, url: str, *, connections: int = 15, wait_seconds: float = 30.0) -> None:
        self.url: URL = _with_driver(make_url(url))
        self.dialect = self.url.get_backend_name()
        self._writers = threading.Lock()
        pool = {"pool_size": connections, "max_overflow": 0, "pool_timeout": wait_seconds}
        if self.dialect == "sqlite":
            if self.url.database in (None, "", ":memory:"):
                raise ValueError("SQLite needs a file: a database in memory is not shared between processes")
            _make_private(Path(str(self.url.database)))
            options: dict[str, Any] = {"hide_parameters": True, "connect_args": {"timeout": _BUSY_TIMEOUT_SECONDS}}
            self.engine = create_engine(self.url, **options, **pool)
            event.listen(self.engine, "begin", _on_sqlite_begin)
        elif self.dialect == "postgresql":
            # What the URL says itself counts: "options" given there take the place of ours.
            ours = {name: value for name, value in _POSTGRES.items() if name not in self.url.query}
            options = {"hide_parameters": True, "connect_args": ours}
            self.engine = create_engine(self.url, **options, **pool)
            event.listen(self.engine, "checkin", _note_use)
            event.listen(self.engine, "checkout", _ping_after_idling)
        else:
            raise ValueError(f"unsupported database {self.dialect!r}: use sqlite or postgresql")
        self._alone = create_engine(self.url, **options, poolclass=NullPool)
        if self.dialect == "sqlite":
            for engine in (self.engine, self._alone):
                event.listen(engine, "connect", _on_sqlite_connect)
        if self.dialect == "postgresql":
            # One snapshot for a whole block, which is what SQLite gives anyway.
            reading = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            looking = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        else:
            reading = looking = self.engine.execution_options(minillm_write=False)
        self._read = sessionmaker(reading, expire_on_commit=False)
        self._look = sessionmaker(looking, expire_on_commit=False)
        self._write = sessionmaker(self.engine.execution_options(minillm_write=True), expire_on_commit=False)
        _forget_after_fork(self)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session on one consistent view that cannot write; writing raises sqlalchemy.exc.DBAPIError."""
        with self._read() as session:
            yield session

    @contextlib.contextmanager
    def look(self) -> Iterator[Session]:
        """A session for reading where each statement may see newer data than the one before it.

        On PostgreSQL it saves the exchanges that begin and end a transaction, which take as long as a small query.
        """
        with self._look() as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose transaction commits at the end of the block and rolls back on an exception.

        On SQLite it begins with BEGIN IMMEDIATE, so that reading and then writing cannot fail with
        "database is locked"; writers wait their turn, at most 30 seconds.
        """
        with self._turn(), self._write() as session, session.begin():
            yield session

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One writer a process on SQLite: who waits here is woken at once, where SQLite would have it try again."""
        if self.dialect != "sqlite":
            yield
            return
        if not self._writers.acquire(timeout=_BUSY_TIMEOUT_SECONDS):
            raise PoolTimeout(f"other threads have written for {_BUSY_TIMEOUT_SECONDS:g} seconds")
        try:
            yield
        finally:
            self._writers.release()

    def connection(self) -> Any:
        """A new connection of the driver itself, beside those of the pool, for who asked for it to use and to close."""
        connection = self._alone.raw_connection()
        connection.detach()
        return connection.dbapi_connection

    @staticmethod
    def now(session: Session) -> dt.datetime:
        """The database's clock as an aware UTC datetime."""
        return database_now(session)

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _ping_after_idling(connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
    """A server that was restarted, or a firewall, ends idle connections: they are tried before they are used."""
    if time.monotonic() - record.info.get("used_at", time.monotonic()) < _IDLE_SECONDS:
        return
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
        connection.rollback()
    except Exception as error:
        raise InvalidatePoolError("the connection has ended while it was idle") from error


def _make_private(file: Path) -> None:
    """An empty file for SQLite, which gives its journals the mode that the database has."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # SQLite says better what is wrong
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))


def _with_driver(url: URL) -> URL:
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    # sqlite3's own transaction handling would begin late and deferred: it is switched off, and the
    # begin hook below says BEGIN itself.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    # A commit is on the disk once it is done: what was answered with 201 outlives a power cut too.
    connection.execute("PRAGMA synchronous = FULL")


def _on_sqlite_begin(connection: Connection) -> None:
    if connection.get_execution_options().get("minillm_write", True):
        connection.exec_driver_sql("PRAGMA query_only = OFF")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("PRAGMA query_only = ON")
        connection.exec_driver_sql("BEGIN")


def _forget_after_fork(database: Database) -> None:
    reference = weakref.ref(database)

    def forget() -> None:
        survivor = reference()
        if survivor is not None:
            survivor.engine.dispose(close=False)
            survivor._writers = threading.Lock()

    os.register_at_fork(after_in_child=forget)
