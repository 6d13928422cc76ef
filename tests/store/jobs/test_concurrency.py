"""Many at once: each job is claimed exactly once, and SQLite's one writer makes nobody fail."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from store.db.database import Database
from store.db.errors import Conflict
from store.db.ids import new_id
from store.db.tables import Checkpoint, Event, File, Job
from store.files import FileRepository
from store.idempotency import IdempotencyRepository
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.leases import Outcome, ResumePoint, claim, finish, record, renew
from store.jobs.metrics import MetricRepository
from store.jobs.repository import JobRepository
from store.jobs.transitions import lock
from store.jobs.vocabulary import JobState
from tests.fixtures.sweep import sweep
from tests.store import scenes


def together(number: int, work: Callable[[int], None]) -> None:
    """Run ``work(0..number-1)`` in threads that start at once; raises what the first of them raised."""
    errors: list[BaseException] = []
    gate = threading.Barrier(number)

    def run(index: int) -> None:
        try:
            gate.wait(10)
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def meanwhile(database: Database, first: Callable[[Session], object], second: Callable[[Session], object]) -> None:
    """Do both, each in its transaction; the second begins before the first has committed. Raises what either raises."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with database.write() as session:
                second(session)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    with database.write() as session:
        first(session)
        session.flush()
        thread.start()
        until = time.monotonic() + 1.0
        while thread.is_alive() and not _waiting(database) and time.monotonic() < until:
            time.sleep(0.01)
    thread.join(30)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def _waiting(database: Database) -> bool:
    """Whether a session waits for another's lock. On SQLite nobody can see that: all wait at their beginning."""
    if database.dialect == "sqlite":
        time.sleep(0.05)
        return True
    with database.read() as session:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(session.scalar(text(waiting)))


def test_each_job_is_claimed_once(database: Database) -> None:
    jobs = {scenes.make_job(database) for _ in range(24)}
    claimed: list[str] = []

    def work(index: int) -> None:
        while True:
            with database.write() as session:
                taken = claim(session, f"wrk_{index}", "host", index, 30.0)
            if taken is None:
                return
            assert (taken.attempt, taken.fence) == (1, 1)
            claimed.append(taken.job_id)

    together(8, work)
    # On PostgreSQL a claimer may find every candidate locked and go; nobody else may have been left.
    with database.write() as session:
        assert claim(session, "wrk_late", "host", 1, 30.0) is None
    assert sorted(claimed) == sorted(jobs)


def test_one_named_job_is_claimed_once(database: Database) -> None:
    job_id = scenes.make_job(database)
    won: list[int] = []

    def work(index: int) -> None:
        with database.write() as session:
            if claim(session, f"wrk_{index}", "host", index, 30.0, job_id) is not None:
                won.append(index)

    together(8, work)
    assert len(won) == 1


def test_events_have_no_gaps_when_all_write(database: Database) -> None:
    job_id = scenes.make_job(database)
    taken = scenes.take(database)

    def work(index: int) -> None:
        for number in range(5):
            if index == 2:
                sweep(database)
                continue
            with database.write() as session:
                if index == 0:
                    record(session, taken, [scenes.phase(number + 1), scenes.checkpoint(number + 100, number)])
                elif index == 1:
                    renew(session, taken, 30.0)
                else:
                    repository = JobRepository(session)
                    job = repository.get(scenes.OWNER, job_id)
                    (repository.request_pause if number % 2 else repository.resume)(job)

    together(5, work)
    with database.read() as session:
        job = session.get(Job, job_id)
        assert job is not None
        numbers = session.scalars(select(Event.seq).where(Event.job_id == job_id).order_by(Event.seq)).all()
        assert list(numbers) == list(range(1, job.event_seq + 1))


def test_two_sweepers_requeue_once(database: Database) -> None:
    jobs = [scenes.make_job(database) for _ in range(6)]
    for job_id in jobs:
        scenes.take(database, job_id)
    with database.write() as session:
        for job_id in jobs:
            scenes.pass_time(session, job_id, 31)
    requeued: list[str] = []

    def work(_: int) -> None:
        requeued.extend(sweep(database).requeued)

    together(4, work)
    assert sorted(requeued) == sorted(jobs)


def test_a_sweep_waits_for_no_row(database: Database) -> None:
    """Whoever holds one may sleep; the others are recovered meanwhile. (On SQLite there are no rows to hold.)"""
    jobs = sorted(scenes.make_job(database) for _ in range(2))
    for job_id in jobs:
        scenes.take(database, job_id)
    with database.write() as session:
        for job_id in jobs:
            scenes.pass_time(session, job_id, 31)
    requeued: list[str] = []

    def work() -> None:
        requeued.extend(sweep(database).requeued)

    thread = threading.Thread(target=work)
    with database.write() as session:
        lock(session, jobs[0])
        thread.start()
        if database.dialect == "postgresql":
            thread.join(10)
            assert requeued == [jobs[1]]
    thread.join(10)
    assert set(requeued) <= set(jobs) and jobs[1] in requeued


def test_cancel_against_claim(database: Database) -> None:
    jobs = [scenes.make_job(database) for _ in range(10)]

    def work(index: int) -> None:
        for job_id in jobs:
            with database.write() as session:
                if index % 2:
                    claim(session, "wrk_a", "host", 1, 30.0, job_id)
                else:
                    repository = JobRepository(session)
                    try:
                        repository.request_cancel(repository.get(scenes.OWNER, job_id))
                    except Conflict as conflict:
                        assert conflict.code == "job_finished"

    together(4, work)
    for job_id in jobs:
        assert scenes.row(database, job_id).state in (JobState.CANCELLED, JobState.CANCELLING)


def test_same_idempotency_key_at_once_makes_one_job(database: Database) -> None:
    request = {"owner_id": scenes.OWNER, "method": "POST", "path": "/v1/jobs", "key": "k"}
    answers: list[str] = []

    def work(_: int) -> None:
        with database.write() as session:
            keys = IdempotencyRepository(session)
            replay = keys.begin(**request, fingerprint="f")
            if replay is not None:
                answers.append(replay.body)
                return
            job = JobRepository(session).create(owner_id=scenes.OWNER, spec=scenes.make_spec())
            keys.complete(**request, status=201, body=job.id)
            answers.append(job.id)

    together(20, work)
    with database.read() as session:
        assert len(JobRepository(session).list(scenes.OWNER).items) == 1
    assert len(answers) == 20 and len(set(answers)) == 1


def test_eight_writers_never_find_it_locked(database: Database) -> None:
    claims = [scenes.take(database, scenes.make_job(database)) for _ in range(8)]
    writes = [0] * 8
    end = time.monotonic() + 1.5

    def work(index: int) -> None:
        mine = Database(database.url.render_as_string(hide_password=False))  # its own pool, as its own process has
        try:
            taken = claims[index]
            while not writes[index] or time.monotonic() < end:
                writes[index] += 1
                with mine.write() as session:  # reads, then writes
                    record(session, taken, [scenes.metrics(writes[index], writes[index], loss=1.0)])
                with mine.read() as session:
                    JobRepository(session).get(scenes.OWNER, taken.job_id)
            with mine.write() as session:
                finish(session, taken, Outcome.stopped())
        finally:
            mine.dispose()

    together(8, work)
    with database.read() as session:
        for taken, written in zip(claims, writes, strict=True):
            points = MetricRepository(session).series(scenes.row(database, taken.job_id)).items
            assert len(points) == written >= 1


def test_no_claim_is_given_a_checkpoint_that_goes(database: Database) -> None:
    jobs = [scenes.make_job(database) for _ in range(12)]
    rows: list[Checkpoint] = []
    for job_id in jobs:
        first = scenes.take(database, job_id)
        with database.write() as session:
            record(session, first, [scenes.checkpoint(1, 1), scenes.checkpoint(2, 2)])
            finish(session, first, Outcome.stopped())
            repository = CheckpointRepository(session)
            newest, oldest = repository.list(scenes.row(database, job_id)).items
            repository.set_expires_at(oldest, database.now(session))
        rows.append(newest)
    given: list[ResumePoint] = []

    def work(index: int) -> None:
        for number, job_id in enumerate(jobs):
            if index == 0:
                sweep(database)
                continue
            with database.write() as session:
                if index == 1:
                    with contextlib.suppress(Conflict):
                        CheckpointRepository(session).request_delete(rows[number])
                else:
                    taken = claim(session, f"wrk_{index}", "host", 1, 30.0, job_id)
                    given.extend(taken.resume if taken is not None else ())

    together(4, work)
    with database.read() as session:
        going = select(Checkpoint.job_id, Checkpoint.path).where(Checkpoint.deleting.is_(True))
        gone = {(job_id, path) for job_id, path in session.execute(going)}
    assert not gone & {(point.job_id, point.path) for point in given}
    assert len(gone) + len(given) >= len(jobs)


def test_two_sweepers_remove_what_is_deleted_once(database: Database) -> None:
    job_id = scenes.make_job(database)
    taken = scenes.take(database, job_id)
    with database.write() as session:
        record(session, taken, [scenes.checkpoint(1, 1), scenes.student(2)])
        finish(session, taken, scenes.success())
        (checkpoint,) = CheckpointRepository(session).list(session.get_one(Job, job_id)).items
        CheckpointRepository(session).request_delete(checkpoint)
        files = FileRepository(session)
        file = files.create(id=new_id("file"), owner_id=scenes.OWNER, filename="f", purpose="x", bytes=1, sha256="0")
        files.request_delete(file)

    def twice(purge: Callable[[Session], object]) -> None:
        meanwhile(database, purge, purge)

    twice(lambda session: CheckpointRepository(session).purge(checkpoint.id))
    with database.read() as session:
        said = select(Event).where(Event.job_id == job_id, Event.type == "checkpoint_removed")
        assert len(session.scalars(said).all()) == 1
    twice(lambda session: FileRepository(session).purge(file.id))
    with database.write() as session:
        repository = JobRepository(session)
        repository.request_delete(repository.get(scenes.OWNER, job_id))
    twice(lambda session: JobRepository(session).purge(job_id))
    with database.read() as session:
        assert session.get(Job, job_id) is None and session.get(File, file.id) is None


def test_a_checkpoint_goes_with_its_job_while_it_is_removed(database: Database) -> None:
    job_id = scenes.make_job(database)
    taken = scenes.take(database, job_id)
    with database.write() as session:
        record(session, taken, [scenes.checkpoint(1, 1)])
        finish(session, taken, scenes.failure("system"))
        (checkpoint,) = CheckpointRepository(session).list(session.get_one(Job, job_id)).items
        CheckpointRepository(session).request_delete(checkpoint)
        repository = JobRepository(session)
        repository.request_delete(repository.get(scenes.OWNER, job_id))
    meanwhile(
        database,
        lambda session: JobRepository(session).purge(job_id),
        lambda session: CheckpointRepository(session).purge(checkpoint.id),
    )


def test_two_sweepers_expire_a_file_once(database: Database) -> None:
    with database.write() as session:
        now = database.now(session)
        file = FileRepository(session).create(
            id=new_id("file"), owner_id=scenes.OWNER, filename="f", purpose="x", bytes=1, sha256="0", expires_at=now
        )

    def expire(session: Session) -> None:
        FileRepository(session).expire(database.now(session))

    def expire_and_purge(session: Session) -> None:
        expire(session)
        FileRepository(session).purge(file.id)

    meanwhile(database, expire_and_purge, expire)


def test_no_lease_waits_for_what_a_sweep_reads(database: Database, database_url: str) -> None:
    """A slow disk under one lost attempt: another's holder renews meanwhile, and no second sweep does it again."""
    lost, healthy = (scenes.make_job(database) for _ in range(2))
    claims = {job_id: scenes.take(database, job_id) for job_id in (lost, healthy)}
    with database.write() as session:
        scenes.pass_time(session, lost, 31)
    elsewhere = Database(database_url)  # as from another process
    done: list[str] = []

    class SlowDisk(scenes.LostRun):
        def last_events(self, job_id: str, attempt: int) -> Sequence[Any]:
            assert (job_id, attempt) == (lost, 1)
            with elsewhere.write() as session:
                renew(session, claims[healthy], 30.0)
            done.append("renewed")
            done.extend(sweep(elsewhere).requeued)  # a second sweeper is quicker
            return [scenes.phase(1)]

    assert sweep(database, folders=SlowDisk(log=b"x")).requeued == []
    elsewhere.dispose()
    assert done == ["renewed", lost]
    assert scenes.row(database, lost).state is JobState.QUEUED
    assert [attempt.log_tail for attempt in scenes.attempts(database, lost)] == [None]


def test_a_fork_is_not_retried_while_its_checkpoint_goes(database: Database) -> None:
    origin_id = scenes.make_job(database)
    taken = scenes.take(database, origin_id)
    with database.write() as session:
        record(session, taken, [scenes.checkpoint(1, 1)])
        finish(session, taken, scenes.failure("system"))
        (origin,) = CheckpointRepository(session).list(session.get_one(Job, origin_id)).items
        repository = JobRepository(session)
        fork_id = repository.create(owner_id=scenes.OWNER, spec=scenes.make_spec(), forked_from=origin).id
    fork = scenes.take(database, fork_id)
    with database.write() as session:
        finish(session, fork, scenes.failure("system"))

    def retry(session: Session) -> None:
        repository = JobRepository(session)
        repository.retry(repository.get(scenes.OWNER, fork_id))

    with pytest.raises(Conflict) as caught:
        meanwhile(database, lambda session: CheckpointRepository(session).request_delete(origin), retry)
    assert caught.value.code == "checkpoint_gone"


class TestFilesAndModels:
    """What a job names stays from the moment that it is accepted, whatever was asked for at the same time."""

    def test_a_file_that_goes_is_no_jobs_any_more(self, database: Database) -> None:
        with database.write() as session:
            file = _file(session)
        with pytest.raises(Conflict) as caught:
            meanwhile(
                database,
                lambda session: FileRepository(session).request_delete(session.get_one(File, file.id)),
                lambda session: _job_on(session, file.id),
            )
        assert caught.value.code == "file_gone"

    def test_a_file_that_a_job_has_just_named_stays(self, database: Database) -> None:
        with database.write() as session:
            file = _file(session)
        with pytest.raises(Conflict) as caught:
            meanwhile(
                database,
                lambda session: _job_on(session, file.id),
                lambda session: FileRepository(session).request_delete(session.get_one(File, file.id)),
            )
        assert caught.value.code == "in_use"

    def test_one_that_expires_stays_too(self, database: Database) -> None:
        with database.write() as session:
            file = _file(session)
            file.expires_at = database.now(session)
        meanwhile(
            database,
            lambda session: _job_on(session, file.id),
            lambda session: FileRepository(session).expire(database.now(session)),
        )
        sweep(database)
        with database.write() as session:
            assert not session.get_one(File, file.id).deleting

    def test_a_student_that_goes_is_no_jobs_any_more(self, database: Database) -> None:
        made, model = _student(database)
        with pytest.raises(Conflict) as caught:
            meanwhile(
                database,
                lambda session: JobRepository(session).request_delete(session.get_one(Job, made)),
                lambda session: _job_on(session, "file_abc", student=model),
            )
        assert caught.value.code == "model_gone"

    def test_a_student_that_a_job_has_just_named_stays(self, database: Database) -> None:
        made, model = _student(database)
        with pytest.raises(Conflict) as caught:
            meanwhile(
                database,
                lambda session: _job_on(session, "file_abc", student=model),
                lambda session: JobRepository(session).request_delete(session.get_one(Job, made)),
            )
        assert caught.value.code == "in_use"


def _file(session: Session) -> File:
    return FileRepository(session).create(
        id=new_id("file"), owner_id=scenes.OWNER, filename="f", purpose="x", bytes=1, sha256="0"
    )


def _job_on(session: Session, file_id: str, student: str = "path:student") -> None:
    spec = scenes.make_spec(dataset={"file": file_id}, student={"model": student})
    JobRepository(session).create(owner_id=scenes.OWNER, spec=spec)


def _student(database: Database) -> tuple[str, str]:
    """A finished job and the model that it made."""
    job_id = scenes.make_job(database)
    taken = scenes.take(database, job_id)
    with database.write() as session:
        record(session, taken, [scenes.student(1)])
        finish(session, taken, scenes.success())
    return job_id, scenes.student_model(database, job_id)
