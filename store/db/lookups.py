"""Small questions that every request asks: who is calling, and whether a job has changed.

They are answered by one thread with a connection of its own, each by a statement or two outside of any transaction.
A session would spend ten times as long on its own opening and ending; a thread of a pool would take as long again to
be found. All questions that came while others were answered are answered together, on PostgreSQL in one exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import OperationalError

from store.db.database import Database

_MOST_TOGETHER = 100


@dataclass(frozen=True, slots=True)
class Question:
    key_digest: str | None
    """Of an API key."""
    job_id: str | None


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
    stamp: object
    """Equal in two answers where nothing at all was committed to the database in between."""
    now: dt.datetime
    """The database's clock."""


_KEY_COLUMNS = "id, owner_id, scopes, last_used_at"
_JOB_COLUMNS = "id, owner_id, version, state, deleting, seconds_left, progress_at"

_SQLITE_KEY = f"""SELECT {_KEY_COLUMNS} FROM api_keys WHERE digest = ? AND revoked_at IS NULL
AND (expires_at IS NULL OR expires_at > strftime('%Y-%m-%d %H:%M:%f000', 'now'))"""
_SQLITE_JOB = f"SELECT {_JOB_COLUMNS} FROM jobs WHERE id = ?"

# Two snapshots that read the same see the same transactions.
_POSTGRESQL = f"""SELECT pg_current_snapshot()::text, clock_timestamp(), k.*, j.*
FROM (SELECT 1) AS one
LEFT JOIN (SELECT {_KEY_COLUMNS}, digest FROM api_keys WHERE revoked_at IS NULL
AND (expires_at IS NULL OR expires_at > clock_timestamp())) AS k ON k.digest = %s
LEFT JOIN (SELECT {_JOB_COLUMNS} FROM jobs) AS j ON j.id = %s"""

_Asked = tuple[Question, asyncio.AbstractEventLoop, "asyncio.Future[Answer]"]


class Lookups:
    """Asks a database. The thread begins with the first question and ends with :meth:`close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    async def ask(self, question: Question) -> Answer:
        """Raises one of ``DATABASE_AWAY`` where the database does not answer."""
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
        reader: _Reader | None = None
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

    def _answer(self, reader: _Reader | None, questions: Sequence[Question]) -> tuple[_Reader, list[Answer]]:
        """By `reader`, or by a new one where there is none or the server has ended its connection meanwhile."""
        driver_error = self._database.engine.dialect.loaded_dbapi.Error
        if reader is not None:
            try:
                return reader, reader.answer(questions)
            except driver_error:
                reader.close()
        try:
            reader = _reader(self._database)
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
        self._connection: PoolProxiedConnection = database.engine.raw_connection()
        # It is this reader's alone from now on, and does not count among those of the pool.
        self._connection.detach()

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        raise NotImplementedError

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()


def _reader(database: Database) -> _Reader:
    return _SqliteReader(database) if database.dialect == "sqlite" else _PostgresReader(database)


class _SqliteReader(_Reader):
    def __init__(self, database: Database) -> None:
        super().__init__(database)
        driver: Any = self._connection.dbapi_connection
        self._execute = driver.execute
        self._execute("PRAGMA query_only = ON")
        self._opened = os.urandom(8)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        execute = self._execute
        (version,) = execute("PRAGMA data_version").fetchone()
        key = job = None
        if question.key_digest is not None and (row := execute(_SQLITE_KEY, (question.key_digest,)).fetchone()):
            id, owner_id, scopes, used = row
            key = KeyRow(id, owner_id, tuple(json.loads(scopes)), _time(used))
        if question.job_id is not None and (row := execute(_SQLITE_JOB, (question.job_id,)).fetchone()):
            id, owner_id, number, state, deleting, left, progress_at = row
            job = JobRow(id, owner_id, number, state, bool(deleting), left, _time(progress_at))
        # SQLite's clock is this machine's.
        return Answer(key, job, (self._opened, version), dt.datetime.now(dt.UTC))


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
        if len(questions) == 1:
            cursors = [self._execute(questions[0])]
        else:
            with self._driver.pipeline():
                cursors = [self._execute(question) for question in questions]
        return [self._answer(cursor.fetchone()) for cursor in cursors]

    def _execute(self, question: Question) -> Any:
        return self._driver.execute(_POSTGRESQL, (question.key_digest, question.job_id))

    @staticmethod
    def _answer(row: Sequence[Any]) -> Answer:
        stamp, now = row[:2]
        key = KeyRow(row[2], row[3], tuple(row[4]), row[5]) if row[2] is not None else None
        job = JobRow(*row[7:]) if row[7] is not None else None
        return Answer(key, job, stamp, now)
