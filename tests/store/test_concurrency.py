"""Many at once: each job is claimed exactly once, and SQLite's one writer makes nobody fail."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from sqlalchemy import select

from store.checkpoints import CheckpointRepository
from store.database import Database
from store.errors import Conflict
from store.events import MetricRepository
from store.idempotency import IdempotencyRepository
from store.jobs import JobRepository
from store.leases import Outcome, ResumePoint, claim, finish, record, renew
from store.sweep import sweep
from store.tables import Checkpoint, Event, Job
from store.vocabulary import JobState
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
            with database.write() as session:
                if index == 0:
                    record(session, taken, [scenes.phase(number + 1), scenes.checkpoint(number + 100, number)])
                elif index == 1:
                    renew(session, taken, 30.0)
                elif index == 2:
                    sweep(session)
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
        with database.write() as session:
            requeued.extend(sweep(session).requeued)

    together(4, work)
    assert sorted(requeued) == sorted(jobs)


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
            points = MetricRepository(session).series(scenes.row(database, taken.job_id))
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
            with database.write() as session:
                if index == 0:
                    sweep(session)
                elif index == 1:
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
