"""Small questions that are asked over and over: who is calling, and whether a job, or the newest jobs, have changed.

They are answered by a statement or two outside of any transaction, on a connection of their own, where they are asked:
in the event loop, for a thread takes longer to wake up than either database takes to answer. A session would spend ten
times as long on its own opening and ending.

SQLite answers at once, from memory and without waiting for those who write; where it would have to wait, a thread
does. PostgreSQL is sent every question as it comes (libpq's pipeline mode) and answers them in their order.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime as dt
import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio.to_thread
from sqlalchemy.exc import OperationalError

from store.db.database import Database


@dataclass(frozen=True, slots=True)
class Question:
    key_digest: str | None = None
    """Of an API key."""
    owner_id: str | None = None
    """Of the caller, where no key says it."""
    job_id: str | None = None
    newest: int | None = None
    """So many of the caller's newest jobs, and one more where there are more."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An API key that may be used now."""

    id: str
    owner_id: str
    scopes: tuple[str, ...]
    last_used_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class JobRow:
    """What tells whether a job has changed."""

    id: str
    owner_id: str
    version: int
    state: str
    deleting: bool
    seconds_left: float | None
    progress_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Answer:
    key: KeyRow | None
    job: JobRow | None
    newest: Sequence[JobRow] | None
    stamp: object
    """Read first. Equal in two answers where nothing at all was committed to the database in between."""
    now: dt.datetime
    """The database's clock."""


_KEY_COLUMNS = "id, owner_id, scopes, last_used_at"
_JOB_COLUMNS = "id, owner_id, version, state, deleting, seconds_left, progress_at"

_POSTGRESQL_JOB_COLUMNS = """j.id, j.owner_id, j.version, j.state, j.deleting, j.seconds_left,
extract(epoch FROM j.progress_at)"""

_SQLITE_KEY = f"""SELECT {_KEY_COLUMNS} FROM api_keys WHERE digest = ? AND revoked_at IS NULL
AND (expires_at IS NULL OR expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now'))"""
_SQLITE_JOB = f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id = ?"
_SQLITE_NEWEST = f"""SELECT {_JOB_COLUMNS} FROM jobs WHERE owner_id = ? AND NOT deleting
ORDER BY created_at DESC, id DESC LIMIT ?"""

# Two snapshots that read the same see the same transactions.
_POSTGRESQL_ONE = f"""SELECT pg_current_snapshot()::text, extract(epoch FROM clock_timestamp()),
k.id, k.owner_id, k.scopes::text, extract(epoch FROM k.last_used_at), {_POSTGRESQL_JOB_COLUMNS}
FROM (SELECT 1) AS one
LEFT JOIN api_keys AS k ON k.digest = $1 AND k.revoked_at IS NULL
AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
LEFT JOIN jobs AS j ON j.id = $2"""
_POSTGRESQL_NEWEST = f"""SELECT {_POSTGRESQL_JOB_COLUMNS} FROM jobs AS j
WHERE j.owner_id = COALESCE($1, (SELECT owner_id FROM api_keys WHERE digest = $2 AND revoked_at IS NULL))
AND NOT j.deleting ORDER BY j.created_at DESC, j.id DESC LIMIT $3::bigint"""


class Lookups(Protocol):
    async def ask(self, question: Question) -> Answer:
        """Raises one of ``DATABASE_AWAY`` where the database does not answer."""

    def close(self) -> None: ...


def lookups_of(database: Database) -> Lookups:
    """Connects with the first question."""
    return SqliteLookups(database) if database.dialect == "sqlite" else PostgresLookups(database)


class SqliteLookups:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._reader: _SqliteReader | None = None
        self._opened = 0

    async def ask(self, question: Question) -> Answer:
        if self._lock.acquire(blocking=False):
            try:
                return self._answer(question, patient=False)
            except OperationalError:
                pass  # busy, or none of a database that this connection can read: looked into without hurry
            finally:
                self._lock.release()
        return await anyio.to_thread.run_sync(self._answer_patiently, question)

    def close(self) -> None:
        with self._lock:
            self._forget()

    def _answer_patiently(self, question: Question) -> Answer:
        with self._lock:
            self._forget()
            return self._answer(question, patient=True)

    def _answer(self, question: Question, *, patient: bool) -> Answer:
        try:
            if self._reader is None:
                self._opened += 1
                self._reader = _SqliteReader(self._database, self._opened)
            self._reader.wait(patient)
            return self._reader.answer(question)
        except sqlite3.Error as error:
            self._forget()
            raise OperationalError(None, None, error) from error  # as the sessions say it

    def _forget(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class PostgresLookups:
    """Belongs to one event loop at a time: a question of another one connects anew."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connecting: asyncio.Future[_PostgresConnection] | None = None

    async def ask(self, question: Question) -> Answer:
        connection, is_new = await self._connected()
        try:
            return await connection.ask(question)
        except OperationalError:
            if is_new:
                raise
        # The server has ended the connection, perhaps long ago.
        connection, _ = await self._connected()
        return await connection.ask(question)

    def close(self) -> None:
        connection = _made(self._connecting)
        self._connecting = None
        if connection is not None:
            connection.close_from_anywhere()

    async def _connected(self) -> tuple[_PostgresConnection, bool]:
        """The connection, and whether it has just been made: by the first of many who ask for it at once."""
        loop = asyncio.get_running_loop()
        before = self._connecting
        if before is not None and before.get_loop() is loop:
            if not before.done():
                return await asyncio.shield(before), True
            made = _made(before)
            if made is not None and not made.ended:
                return made, False
        elif (left := _made(before)) is not None:
            left.close_from_anywhere()
        self._connecting = asyncio.ensure_future(self._make(loop))
        return await asyncio.shield(self._connecting), True

    async def _make(self, loop: asyncio.AbstractEventLoop) -> _PostgresConnection:
        driver = await anyio.to_thread.run_sync(_prepared_connection, self._database)
        return _PostgresConnection(driver, loop)


def _made(future: asyncio.Future[_PostgresConnection] | None) -> _PostgresConnection | None:
    if future is None or not future.done() or future.cancelled() or future.exception() is not None:
        return None
    return future.result()


def _prepared_connection(database: Database) -> Any:
    """A driver's connection that knows the statements. Raises OperationalError."""
    import psycopg

    try:
        driver = database.connection()
        driver.autocommit = True
        for name, statement in ((b"one", _POSTGRESQL_ONE), (b"newest", _POSTGRESQL_NEWEST)):
            result = driver.pgconn.prepare(name, statement.encode())
            if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
                driver.close()
                raise psycopg.OperationalError(result.get_error_message())
    except psycopg.Error as error:
        raise OperationalError(None, None, error) from error  # as the sessions say it
    return driver


@dataclass(slots=True)
class _Pending:
    future: asyncio.Future[Answer]
    wants_newest: bool
    results: list[Any] = field(default_factory=list)


class _PostgresConnection:
    """libpq without waiting: what it has to say is read when the event loop says that something has come."""

    def __init__(self, driver: Any, loop: asyncio.AbstractEventLoop) -> None:
        from psycopg import pq

        self._driver = driver
        self._loop = loop
        self._status = pq.ExecStatus
        self._pgconn = driver.pgconn
        self._pgconn.nonblocking = 1
        self._pgconn.enter_pipeline_mode()
        self._socket: int = self._pgconn.socket
        self._pending: collections.deque[_Pending] = collections.deque()
        self._error: Exception | None = None
        loop.add_reader(self._socket, self._read)

    async def ask(self, question: Question) -> Answer:
        """Raises OperationalError, also for every question that is waiting when the connection ends."""
        if self._error is not None:
            raise OperationalError(None, None, self._error)
        pending = _Pending(self._loop.create_future(), question.newest is not None)
        self._pending.append(pending)
        try:
            digest, owner_id = _bytes(question.key_digest), _bytes(question.owner_id)
            self._pgconn.send_query_prepared(b"one", [digest, _bytes(question.job_id)])
            if question.newest is not None:
                self._pgconn.send_query_prepared(b"newest", [owner_id, digest, b"%d" % (question.newest + 1)])
            self._pgconn.pipeline_sync()
            self._write()
        except Exception as error:
            self._fail(error)
        return await pending.future

    @property
    def ended(self) -> bool:
        return self._error is not None

    def close_from_anywhere(self) -> None:
        """From any thread, also once the event loop has ended."""
        error = RuntimeError("the connection was closed")
        try:
            self._loop.call_soon_threadsafe(self._fail, error)
        except RuntimeError:  # it is closed: nobody waits any more
            self._driver.close()

    def _write(self) -> None:
        """Send what is to be sent, the rest of it when the socket takes more."""
        if self._pgconn.flush() == 1:
            self._loop.add_writer(self._socket, self._write_on)
        else:
            self._loop.remove_writer(self._socket)

    def _write_on(self) -> None:
        try:
            self._write()
        except Exception as error:
            self._fail(error)

    def _read(self) -> None:
        try:
            self._pgconn.consume_input()
            while self._pending and not self._pgconn.is_busy():
                self._take(self._pgconn.get_result())
        except Exception as error:
            self._fail(error)

    def _take(self, result: Any) -> None:
        if result is None:
            return  # the end of one statement's results
        pending = self._pending[0]
        if result.status == self._status.TUPLES_OK:
            pending.results.append(result)
        elif result.status == self._status.PIPELINE_SYNC:
            self._pending.popleft()
            if not pending.future.done():
                pending.future.set_result(_postgres_answer(pending.results, pending.wants_newest))
        else:
            raise RuntimeError(result.get_error_message())

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._driver.close()
        while self._pending:
            future = self._pending.popleft().future
            if not future.done():
                future.set_exception(OperationalError(None, None, self._error))


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _postgres_answer(results: Sequence[Any], wants_newest: bool) -> Answer:
    one = results[0]
    values = [one.get_value(0, column) for column in range(one.nfields)]
    stamp, now, key_id, owner_id, scopes, used = values[:6]
    key = None
    if key_id is not None:
        key = KeyRow(key_id.decode(), owner_id.decode(), tuple(json.loads(scopes)), _moment(used))
    job = _postgres_job(values[6:]) if values[6] is not None else None
    newest = None
    if wants_newest:
        many = results[1]
        columns = range(many.nfields)
        newest = [_postgres_job([many.get_value(row, column) for column in columns]) for row in range(many.ntuples)]
    return Answer(key, job, newest, stamp, dt.datetime.fromtimestamp(float(now), dt.UTC))


def _postgres_job(values: Sequence[bytes]) -> JobRow:
    id, owner_id, version, state, deleting, left, progress_at = values
    return JobRow(
        id.decode(),
        owner_id.decode(),
        int(version),
        state.decode(),
        deleting == b"t",
        None if left is None else float(left),
        _moment(progress_at),
    )


def _moment(epoch: bytes | None) -> dt.datetime | None:
    return None if epoch is None else dt.datetime.fromtimestamp(float(epoch), dt.UTC)


class _SqliteReader:
    def __init__(self, database: Database, number: int) -> None:
        self._connection = database.connection()
        self._execute = self._connection.execute
        self._execute("PRAGMA query_only = ON")
        self._number = number
        self._patient: bool | None = None

    def wait(self, patient: bool) -> None:
        """Whether to wait where another process has locked everything, which it does when it recovers from a crash."""
        if patient is not self._patient:
            self._execute(f"PRAGMA busy_timeout = {30_000 if patient else 0}")
            self._patient = patient

    def answer(self, question: Question) -> Answer:
        execute = self._execute
        (version,) = execute("PRAGMA data_version").fetchone()
        key = job = newest = None
        owner_id = question.owner_id
        if question.key_digest is not None and (row := execute(_SQLITE_KEY, (question.key_digest,)).fetchone()):
            id, owner_id, scopes, used = row
            key = KeyRow(id, owner_id, tuple(json.loads(scopes)), _time(used))
        if question.job_id is not None and (row := execute(_SQLITE_JOB, (question.job_id,)).fetchone()):
            job = _sqlite_job(row)
        if question.newest is not None and owner_id is not None:
            newest = [_sqlite_job(row) for row in execute(_SQLITE_NEWEST, (owner_id, question.newest + 1))]
        # SQLite's clock is this machine's.
        return Answer(key, job, newest, (self._number, version), dt.datetime.now(dt.UTC))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()


def _sqlite_job(row: Sequence[Any]) -> JobRow:
    id, owner_id, version, state, deleting, seconds_left, progress_at = row
    return JobRow(id, owner_id, version, state, bool(deleting), seconds_left, _time(progress_at))


def _time(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)
