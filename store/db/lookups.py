"""Small questions that are asked over and over: who is calling, and whether a job, or the newest jobs, have changed.

They are answered by a statement or two outside of any transaction, on a connection of their own: a session would spend
ten times as long on its own opening and ending.

SQLite answers at once, where it is asked: from memory, in less time than another thread takes to wake up, and without
waiting for those who write (where it would have to wait, a thread does). PostgreSQL is asked by one thread, which sends
all questions that came while others were answered in one exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import queue
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio.to_thread
from sqlalchemy.exc import OperationalError

from store.db.database import Database

_MOST_TOGETHER = 100


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

_SQLITE_KEY = f"""SELECT {_KEY_COLUMNS} FROM api_keys WHERE digest = ? AND revoked_at IS NULL
AND (expires_at IS NULL OR expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now'))"""
_SQLITE_JOB = f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id = ?"
_SQLITE_NEWEST = f"""SELECT {_JOB_COLUMNS} FROM jobs WHERE owner_id = ? AND NOT deleting
ORDER BY created_at DESC, id DESC LIMIT ?"""

# Two snapshots that read the same see the same transactions.
_POSTGRESQL = f"""SELECT pg_current_snapshot()::text, clock_timestamp(), k.*, j.*
FROM (SELECT 1) AS one
LEFT JOIN (SELECT {_KEY_COLUMNS}, digest FROM api_keys WHERE revoked_at IS NULL
AND (expires_at IS NULL OR expires_at > clock_timestamp())) AS k ON k.digest = %s
LEFT JOIN (SELECT {_JOB_COLUMNS} FROM jobs) AS j ON j.id = %s"""
_POSTGRESQL_NEWEST = f"""SELECT {_JOB_COLUMNS} FROM jobs
WHERE owner_id = COALESCE(%s, (SELECT owner_id FROM api_keys WHERE digest = %s AND revoked_at IS NULL)) AND NOT deleting
ORDER BY created_at DESC, id DESC LIMIT %s"""

_Asked = tuple[Question, asyncio.AbstractEventLoop, "asyncio.Future[Answer]"]


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
    """The thread begins with the first question and ends with :meth:`close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    async def ask(self, question: Question) -> Answer:
        if self._thread is None:
            self._start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._asked.put((question, loop, answer))
        return await answer

    def close(self) -> None:
        with self._lock:
            if self._thread is not None:
                self._asked.put(None)
                self._thread.join()
                self._thread = None

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lookups", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        reader: _PostgresReader | None = None
        ends = False
        while not ends and (first := self._asked.get()) is not None:
            together, ends = self._with_those_waiting(first)
            questions = [question for question, _, _ in together]
            try:
                reader, answers = self._answer(reader, questions)
            except Exception as error:
                reader = None
                _deliver(together, error)
            else:
                _deliver(together, answers)
        if reader is not None:
            reader.close()

    def _answer(
        self, reader: _PostgresReader | None, questions: Sequence[Question]
    ) -> tuple[_PostgresReader, list[Answer]]:
        """By `reader`, or by a new one where there is none or the server has ended its connection meanwhile."""
        driver_error = self._database.engine.dialect.loaded_dbapi.Error
        if reader is not None:
            try:
                return reader, reader.answer(questions)
            except driver_error:
                reader.close()
        try:
            reader = _PostgresReader(self._database)
            return reader, reader.answer(questions)
        except driver_error as error:
            if reader is not None:
                reader.close()
            raise OperationalError(None, None, error) from error  # as the sessions say it

    def _with_those_waiting(self, first: _Asked) -> tuple[list[_Asked], bool]:
        together = [first]
        with contextlib.suppress(queue.Empty):
            while len(together) < _MOST_TOGETHER:
                asked = self._asked.get_nowait()
                if asked is None:
                    return together, True
                together.append(asked)
        return together, False


def _deliver(together: Sequence[_Asked], answers: Sequence[Answer] | Exception) -> None:
    loops = {loop for _, loop, _ in together}
    for loop in loops:
        theirs = [
            (future, answers if isinstance(answers, Exception) else answers[place])
            for place, (_, asking, future) in enumerate(together)
            if asking is loop
        ]
        with contextlib.suppress(RuntimeError):  # a loop that has ended waits for nothing
            loop.call_soon_threadsafe(_settle, theirs)


def _settle(answers: Sequence[tuple[asyncio.Future[Answer], Answer | Exception]]) -> None:
    for future, answer in answers:
        if future.done():
            continue  # nobody waits for it any more
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


class _Reader:
    """One connection, outside of transactions."""

    def __init__(self, database: Database) -> None:
        self._connection = database.connection()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()


class _SqliteReader(_Reader):
    def __init__(self, database: Database, number: int) -> None:
        super().__init__(database)
        driver: Any = self._connection.dbapi_connection
        self._execute = driver.execute
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


def _sqlite_job(row: Sequence[Any]) -> JobRow:
    id, owner_id, version, state, deleting, seconds_left, progress_at = row
    return JobRow(id, owner_id, version, state, bool(deleting), seconds_left, _time(progress_at))


def _time(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


class _PostgresReader(_Reader):
    def __init__(self, database: Database) -> None:
        super().__init__(database)
        driver: Any = self._connection.dbapi_connection
        driver.autocommit = True
        driver.prepare_threshold = 0
        self._driver = driver

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        if len(questions) == 1 and questions[0].newest is None:
            asked = [self._ask(questions[0])]
        else:
            with self._driver.pipeline():
                asked = [self._ask(question) for question in questions]
        return [self._answer(*cursors) for cursors in asked]

    def _ask(self, question: Question) -> tuple[Any, Any]:
        execute = self._driver.execute
        one = execute(_POSTGRESQL, (question.key_digest, question.job_id))
        if question.newest is None:
            return one, None
        return one, execute(_POSTGRESQL_NEWEST, (question.owner_id, question.key_digest, question.newest + 1))

    @staticmethod
    def _answer(one: Any, many: Any) -> Answer:
        row = one.fetchone()
        stamp, now = row[:2]
        key = KeyRow(row[2], row[3], tuple(row[4]), row[5]) if row[2] is not None else None
        job = JobRow(*row[7:]) if row[7] is not None else None
        newest = [JobRow(*row) for row in many.fetchall()] if many is not None else None
        return Answer(key, job, newest, stamp, now)
