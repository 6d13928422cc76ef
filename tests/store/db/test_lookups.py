"""What every request asks, on each database."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from store.api_keys import KeyRepository, digest_of
from store.db.database import DATABASE_AWAY, Database
from store.db.lookups import Answer, Lookups, Question, lookups_of
from store.jobs.repository import JobRepository
from tests.store.scenes import OWNER, make_job

SECRET = b"s" * 32


@pytest.fixture
def lookups(database: Database) -> Iterator[Lookups]:
    lookups = lookups_of(database)
    yield lookups
    lookups.close()


def ask(lookups: Lookups, *questions: Question) -> list[Answer]:
    async def all_at_once() -> list[Answer]:
        return await asyncio.gather(*(lookups.ask(question) for question in questions))

    return asyncio.run(all_at_once())


def test_keys(database: Database, lookups: Lookups) -> None:
    with database.write() as session:
        keys = KeyRepository(session, SECRET)
        key, token = keys.create(owner_id="o", name="n", scopes=["admin"])
        past = database.now(session) - dt.timedelta(seconds=1)
        _, expired = keys.create(owner_id="o", name="n", expires_at=past)
        future = database.now(session) + dt.timedelta(hours=1)
        _, lasting = keys.create(owner_id="p", name="n", expires_at=future)
    asked = [Question(digest_of(one, SECRET)) for one in (token, expired, lasting)]
    first, second, third = ask(lookups, *asked)
    assert first.key is not None and first.job is None and second.key is None
    assert (first.key.id, first.key.owner_id, first.key.scopes, first.key.last_used_at) == (
        key.id,
        "o",
        ("admin",),
        None,
    )
    assert third.key is not None and third.key.owner_id == "p"
    with database.write() as session:
        keys = KeyRepository(session, SECRET)
        keys.touch(key.id)
        now = database.now(session)
    (touched,) = ask(lookups, asked[0])
    assert touched.key is not None and touched.key.last_used_at is not None
    assert abs((touched.key.last_used_at - now).total_seconds()) < 5 and abs((touched.now - now).total_seconds()) < 5
    with database.write() as session:
        keys = KeyRepository(session, SECRET)
        keys.revoke(keys.get("o", key.id))
    (revoked,) = ask(lookups, asked[0])
    assert revoked.key is None, "from the end of that transaction on"


def test_jobs_and_what_was_committed(database: Database, lookups: Lookups) -> None:
    job_id = make_job(database)
    question = Question(job_id=job_id)
    first, again = ask(lookups, question)[0], ask(lookups, question)[0]
    assert first.job is not None and (first.job.id, first.job.owner_id, first.job.state) == (job_id, OWNER, "queued")
    assert first.job == again.job
    if database.dialect == "sqlite":  # PostgreSQL's is that of the whole server, which others use as well
        assert first.stamp == again.stamp, "nothing was committed in between"
    with database.write() as session:
        jobs = JobRepository(session)
        jobs.request_pause(jobs.get(OWNER, job_id))
    (paused,) = ask(lookups, question)
    assert paused.job is not None and paused.job.state == "paused"
    assert paused.job.version > first.job.version and paused.stamp != first.stamp
    assert ask(lookups, Question(job_id="job_nobody"))[0].job is None


def test_the_newest_jobs(database: Database, lookups: Lookups) -> None:
    job_ids = [make_job(database) for _ in range(3)]
    make_job(database, "someone-else")
    with database.write() as session:
        _, token = KeyRepository(session, SECRET).create(owner_id=OWNER, name="n")
        jobs = JobRepository(session)
        jobs.get(OWNER, job_ids[1]).deleting = True
    by_key, by_owner, of_nobody = ask(
        lookups,
        Question(digest_of(token, SECRET), newest=20),
        Question(owner_id=OWNER, newest=0),
        Question(digest_of(token, b"t" * 32), newest=20),
    )
    assert by_key.newest is not None and [job.id for job in by_key.newest] == [job_ids[2], job_ids[0]]
    assert by_owner.newest is not None and [job.id for job in by_owner.newest] == [job_ids[2]], (
        "one more than asked for"
    )
    assert not of_nobody.newest


def test_many_at_once(database: Database, lookups: Lookups) -> None:
    job_ids = [make_job(database) for _ in range(7)]
    answers = ask(lookups, *(Question(job_id=job_id) for job_id in job_ids * 40))
    assert [answer.job.id for answer in answers if answer.job] == job_ids * 40


def test_a_connection_that_the_server_ended(database: Database, lookups: Lookups) -> None:
    job_id = make_job(database)
    ask(lookups, Question(job_id=job_id))
    if database.dialect == "postgresql":
        with database.write() as session:
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            session.execute(text(f"{end} AND pid <> pg_backend_pid()"))
    (answer,) = ask(lookups, Question(job_id=job_id))
    assert answer.job is not None


def test_no_database() -> None:
    lookups = lookups_of(Database("postgresql://nobody@127.0.0.1:1/none"))
    for _ in range(2):
        with pytest.raises(DATABASE_AWAY):
            ask(lookups, Question("digest"))
    lookups.close()
