"""Section by section: what a holder, a user and a sweep may do to a job, on both databases."""

from __future__ import annotations

import datetime as dt
import errno
import json

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session

from minillm_core.spec import CheckpointRemovedEvent, MessageEvent
from store.db.database import Database
from store.db.errors import Conflict, NotFound, StaleAttempt, UnverifiedArtifact
from store.db.ids import new_id
from store.db.tables import Attempt, Job
from store.files import FileRepository
from store.jobs.artifacts import ArtifactRepository
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.events import EventRepository
from store.jobs.leases import Claim, Outcome, claim, finish, pass_over, record, record_process, renew
from store.jobs.metrics import MetricRepository
from store.jobs.repository import JobRepository
from store.jobs.vocabulary import ArtifactKind, AttemptState, DesiredState, JobState, Keep, RetryFrom
from store.models import ModelRepository
from store.workers import WorkerRepository
from tests.fixtures.sweep import Sweep, sweep
from tests.store import scenes
from tests.store.scenes import OWNER, LostRun, attempts, make_job, pass_time, row, take

S = JobState


def say(database: Database, taken: Claim, *events: object) -> None:
    with database.write() as session:
        record(session, taken, events)  # type: ignore[arg-type]


def end(database: Database, taken: Claim, outcome: Outcome) -> JobState:
    with database.write() as session:
        return finish(session, taken, outcome)


def later(database: Database, job_id: str, seconds: float, **options: object) -> Sweep:
    with database.write() as session:
        pass_time(session, job_id, seconds)
    return sweep(database, **options)  # type: ignore[arg-type]


def ask(database: Database, job_id: str, verb: str, *arguments: object) -> JobState:
    with database.write() as session:
        repository = JobRepository(session)
        job = getattr(repository, verb)(repository.get(OWNER, job_id), *arguments)
        return JobState(job.state)


def running(database: Database, **changes: object) -> tuple[str, Claim]:
    job_id = make_job(database, **changes)  # type: ignore[arg-type]
    taken = take(database, job_id)
    say(database, taken, scenes.phase(1), scenes.progress(2, 1))
    return job_id, taken


class TestSuccess:
    def test_whole_life(self, database: Database) -> None:
        job_id = make_job(database, name="smol", seed=7)
        taken = take(database)
        assert (taken.job_id, taken.attempt, taken.fence, taken.seed, taken.resume) == (job_id, 1, 1, 7, ())
        assert json.loads(taken.spec)["name"] == "smol"
        assert row(database, job_id).state is S.STARTING
        with database.write() as session:
            record_process(session, taken, 4321, 99)
        say(database, taken, scenes.phase(1), scenes.progress(2, 5, tokens_per_second=3.0, seconds_left=9.0))
        job = row(database, job_id)
        assert (job.state, job.phase, job.step, job.total_steps, job.fraction) == (S.RUNNING, "training", 5, 10, 0.5)
        assert (job.tokens_per_second, job.seconds_left) == (3.0, 9.0)
        say(database, taken, scenes.metrics(3, 5, loss=1.5), scenes.checkpoint(4, 5, best=True), scenes.student(5))
        assert end(database, taken, scenes.success()) is S.SUCCEEDED
        job = row(database, job_id)
        assert job.metrics == {"loss": 1.5}
        assert job.report == {"rouge_l": {"before": 1.0, "after": 2.0}}
        assert job.finished_at is not None and job.lease_expires_at is None and job.fraction == 1.0
        with database.read() as session:
            student = ArtifactRepository(session).verified(job, ArtifactKind.STUDENT)
            assert student is not None and student.manifest == scenes.MANIFEST.decode()
            assert (student.state, student.attempt, student.path) == ("verified", 1, "student")
            model = ModelRepository(session).get(OWNER, str(student.model_id))
            assert (model.kind, model.path, model.parameters) == ("student", f"runs/{job_id}/1/student", 10)
            with pytest.raises(NotFound):
                ModelRepository(session).get("someone-else", model.id)
            events = EventRepository(session).list(job).items
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert [event.code for event in events if event.type == "state"] == [
            "queued",
            "starting",
            "running",
            "succeeded",
        ]
        (attempt,) = attempts(database, job_id)
        assert (attempt.state, attempt.pid, attempt.pid_started, attempt.exit_code) == ("succeeded", 4321, 99, 0)

    @pytest.mark.parametrize("manifest", [scenes.MANIFEST + b" ", b"{}"])
    def test_needs_the_verified_manifest(self, database: Database, manifest: bytes) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.student(3, manifest if manifest == b"{}" else scenes.MANIFEST))
        with pytest.raises(UnverifiedArtifact):
            end(database, taken, scenes.success(manifest))
        assert row(database, job_id).state is S.RUNNING

    def test_needs_a_student_of_this_attempt(self, database: Database) -> None:
        _, taken = running(database)
        say(database, taken, scenes.student(3))
        end(database, taken, Outcome.stopped(exit_code=75))
        again = take(database)
        with pytest.raises(UnverifiedArtifact):
            end(database, again, scenes.success())

    def test_beats_a_cancel_that_came_too_late(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.student(3))
        assert ask(database, job_id, "request_cancel") is S.CANCELLING
        assert end(database, taken, scenes.success()) is S.SUCCEEDED


class TestRecording:
    def test_is_idempotent(self, database: Database) -> None:
        job_id, taken = running(database)
        events = [scenes.metrics(3, 2, loss=1.0), scenes.checkpoint(4, 2), scenes.metrics(5, 3, loss=0.5)]
        say(database, taken, *events)
        before = row(database, job_id)
        say(database, taken, *events)
        after = row(database, job_id)
        assert (before.event_seq, before.version) == (after.event_seq, after.version)
        with database.read() as session:
            points = MetricRepository(session).series(after).items
        assert [point.values for point in points] == [{"loss": 1.0}, {"loss": 0.5}]

    def test_folders_outside_the_run_are_left_out(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 2, path="../other"), scenes.checkpoint(4, 2, path="/etc"))
        with database.read() as session:
            job = session.merge(row(database, job_id), load=False)
            assert CheckpointRepository(session).list(job).items == []
            assert EventRepository(session).latest(job).items[0].code == "path_refused"

    def test_messages_become_events_and_say_what_was_resumed(self, database: Database) -> None:
        job_id, taken = running(database)
        message = {"seq": 3, "time": scenes.TIME, "code": "resuming", "message": "a\x00b", "data": {"path": "/x/y"}}
        say(database, taken, MessageEvent.model_validate(message))
        with database.read() as session:
            event = EventRepository(session).latest(row(database, job_id)).items[0]
        assert (event.type, event.code, event.message, event.attempt) == ("message", "resuming", "ab", 1)
        assert attempts(database, job_id)[0].resumed_from == "/x/y"

    def test_a_new_best_takes_the_mark(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1, best=True), scenes.checkpoint(4, 2, best=True))
        with database.read() as session:
            items = CheckpointRepository(session).list(row(database, job_id)).items
            assert [(c.step, c.best) for c in items] == [(2, True), (1, False)]


class TestFences:
    def test_a_stale_holder_is_refused_everywhere(self, database: Database) -> None:
        job_id, old = running(database)
        assert later(database, job_id, 31).requeued == [job_id]
        with database.write() as session:
            pass_time(session, job_id, 1000)
        new = take(database)
        assert new.fence > old.fence
        for write in (
            lambda s: renew(s, old, 30),
            lambda s: record(s, old, [scenes.progress(3, 2)]),
            lambda s: record_process(s, old, 1, 1),
            lambda s: finish(s, old, Outcome.stopped()),
        ):
            with pytest.raises(StaleAttempt), database.write() as session:
                write(session)
        with database.write() as session:
            assert renew(session, new, 30).state is DesiredState.RUN

    def test_the_fence_alone_refuses(self, database: Database) -> None:
        """Whatever else the rows say: a higher number in the job's row ends every say of the attempt."""
        job_id, taken = running(database)
        with database.write() as session:
            session.get_one(Job, job_id).fence += 1
        before = row(database, job_id)
        for write in (
            lambda s: renew(s, taken, 30),
            lambda s: record(s, taken, [scenes.progress(3, 2)]),
            lambda s: record_process(s, taken, 1, 1),
            lambda s: finish(s, taken, Outcome.stopped()),
        ):
            with pytest.raises(StaleAttempt), database.write() as session:
                write(session)
        after = row(database, job_id)
        assert (after.version, after.state, after.lease_expires_at) == (
            before.version,
            S.RUNNING,
            before.lease_expires_at,
        )

    def test_renewal_leaves_the_version_alone(self, database: Database) -> None:
        job_id, taken = running(database)
        before = row(database, job_id)
        with database.write() as session:
            pass_time(session, job_id, 29)
            renew(session, taken, 30)
        after = row(database, job_id)
        assert after.version == before.version and after.lease_expires_at > before.lease_expires_at  # type: ignore[operator]

    def test_an_expired_lease_that_nobody_took_is_renewed(self, database: Database) -> None:
        job_id, taken = running(database)
        with database.write() as session:
            pass_time(session, job_id, 100)
            renew(session, taken, 30)
        assert sweep(database).requeued == []

    def test_a_finished_attempt_is_stale(self, database: Database) -> None:
        _, taken = running(database)
        end(database, taken, Outcome.stopped())
        with pytest.raises(StaleAttempt):
            end(database, taken, Outcome.stopped())

    def test_a_draining_worker_gets_nothing_and_is_told(self, database: Database) -> None:
        make_job(database)
        make_job(database)
        with database.write() as session:
            worker = WorkerRepository(session).register(host="h", pid=1, heartbeat_seconds=5)
        taken = take(database, worker=worker.id)
        with database.write() as session:
            WorkerRepository(session).request_drain(worker.id)
            assert renew(session, taken, 30).drain
            assert claim(session, worker.id, "h", 1, 30) is None


class TestQueue:
    def test_priority_then_age(self, database: Database) -> None:
        first = make_job(database)
        second = make_job(database)
        urgent = make_job(database, scheduling={"priority": 5})
        with database.read() as session:
            repository = JobRepository(session)
            jobs = [repository.get(OWNER, name) for name in (first, second, urgent)]
            assert [repository.queue_position(job) for job in jobs] == [2, 3, 1]
            assert repository.queue_positions(jobs) == {urgent: 1, first: 2, second: 3}
        assert [take(database).job_id for _ in range(3)] == [urgent, first, second]
        with database.read() as session:
            assert JobRepository(session).queue_position(row(database, first)) is None
            assert JobRepository(session).queue_positions([row(database, first)]) == {}

    def test_positions_of_a_page_are_those_of_each(self, database: Database) -> None:
        names = [make_job(database, scheduling={"priority": number * 7 % 4 - 2}) for number in range(12)]
        with database.read() as session:
            jobs = [row(database, name) for name in names]
            positions = JobRepository(session).queue_positions(jobs)
            one_by_one = {job.id: JobRepository(session).queue_position(job) for job in jobs}
            some = JobRepository(session).queue_positions(jobs[1::3])
        assert positions == one_by_one and some.items() <= positions.items()
        assert [take(database).job_id for _ in names] == sorted(names, key=lambda name: positions[name])

    def test_backoff_is_waited_for(self, database: Database) -> None:
        job_id, taken = running(database)
        assert end(database, taken, scenes.failure()) is S.QUEUED
        with database.write() as session:
            assert claim(session, "wrk_a", "h", 1, 30) is None
            assert claim(session, "wrk_a", "h", 1, 30, job_id) is None
            pass_time(session, job_id, 6)
            assert claim(session, "wrk_a", "h", 1, 30, job_id) is not None

    def test_estimate_counts_down(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.progress(3, 2, seconds_left=100.0))
        with database.write() as session:
            pass_time(session, job_id, 40)
            repository = JobRepository(session)
            left = repository.seconds_left(repository.get(OWNER, job_id))
        assert left is not None and 55 < left <= 60


class TestFailures:
    @pytest.mark.parametrize("category", ["user", "system"])
    def test_only_infrastructure_is_retried(self, database: Database, category: str) -> None:
        job_id, taken = running(database)
        log = b"first\n" + b"x" * 70_000 + b"\nthe \x1b[31mreason\x1b[0m\x00\n"
        assert end(database, taken, scenes.failure(category, "dataset_invalid", log=log)) is S.FAILED
        job = row(database, job_id)
        assert job.failure == {
            "code": "dataset_invalid",
            "category": category,
            "message": "dataset_invalid happened",
            "param": None,
            "retryable": False,
            "attempt": 1,
        }
        (attempt,) = attempts(database, job_id)
        assert attempt.log_tail is not None and attempt.log_tail.endswith("the reason\n")
        assert len(attempt.log_tail.encode()) <= 65536

    def test_retries_are_bounded_with_growing_backoff(self, database: Database) -> None:
        job_id = make_job(database)
        waits = []
        for number in range(1, 4):
            taken = take(database)
            assert taken.attempt == number
            say(database, taken, scenes.progress(1, number))
            end(database, taken, scenes.failure())
            job = row(database, job_id)
            if job.not_before is not None:
                waits.append(round((job.not_before - job.updated_at).total_seconds()))
            with database.write() as session:
                pass_time(session, job_id, 1000)
        assert waits == [5, 10]
        assert job.state is S.FAILED
        assert [a.state for a in attempts(database, job_id)] == [AttemptState.FAILED] * 3

    def test_no_progress_ends_before_the_bound(self, database: Database) -> None:
        job_id = make_job(database, scheduling={"max_attempts": 50})
        states = []
        for _ in range(4):
            taken = take(database)
            say(database, taken, scenes.progress(1, 3))
            states.append(end(database, taken, scenes.failure()))
            with database.write() as session:
                pass_time(session, job_id, 1000)
        assert states == [S.QUEUED, S.QUEUED, S.QUEUED, S.FAILED]  # the first came further than nothing

    @pytest.mark.parametrize(("second_step", "state"), [(3, S.FAILED), (4, S.QUEUED)])
    def test_same_out_of_memory_twice_is_final(self, database: Database, second_step: int, state: JobState) -> None:
        job_id = make_job(database, scheduling={"max_attempts": 10})
        for step, expected in ((3, S.QUEUED), (second_step, state)):
            taken = take(database)
            say(database, taken, scenes.progress(1, step))
            assert end(database, taken, scenes.failure(code="out_of_memory")) is expected
            with database.write() as session:
                pass_time(session, job_id, 1000)

    def test_a_checkpoint_further_than_the_last_is_progress(self, database: Database) -> None:
        """After the newest one was damaged, attempts that come on are not cut off for being behind."""
        job_id = make_job(database, scheduling={"max_attempts": 50})
        taken = take(database)
        say(database, taken, scenes.checkpoint(1, 2), scenes.checkpoint(2, 8), scenes.progress(3, 9))
        end(database, taken, scenes.failure())
        states = []
        for step in (4, 5, 6, 7, None, None, None):
            with database.write() as session:
                pass_time(session, job_id, 1000)
            taken = take(database)
            for point in taken.resume:
                if step == 4 and point.step == 8:
                    with database.write() as session:
                        pass_over(session, taken, point, "it is damaged", lasting=True)
            if step is not None:
                say(database, taken, scenes.progress(1, step), scenes.checkpoint(2, step))
            states.append(end(database, taken, scenes.failure()))
        assert states == [S.QUEUED] * 6 + [S.FAILED]

    def test_interruptions_count_against_nothing(self, database: Database) -> None:
        job_id = make_job(database, scheduling={"max_attempts": 1})
        for _ in range(5):
            assert end(database, take(database), Outcome.stopped(exit_code=75)) is S.QUEUED
        assert row(database, job_id).retries == 0

    def test_time_limit_found_by_the_holder_expires(self, database: Database) -> None:
        _, taken = running(database, scheduling={"max_runtime_seconds": 60})
        assert end(database, taken, scenes.failure("user", "time_limit")) is S.EXPIRED


class TestSweep:
    def test_lost_worker_is_retried_then_fails(self, database: Database) -> None:
        job_id = make_job(database, scheduling={"max_attempts": 2})
        take(database)
        assert later(database, job_id, 31, folders=LostRun(b"last words")).requeued == [job_id]
        (attempt,) = attempts(database, job_id)
        assert (attempt.state, attempt.log_tail) == (AttemptState.LOST, "last words")
        with database.write() as session:
            pass_time(session, job_id, 1000)
        take(database)
        assert later(database, job_id, 31).failed == [job_id]
        job = row(database, job_id)
        assert job.failure is not None and job.failure["code"] == "worker_lost" and job.failure["attempt"] == 2

    def test_what_a_lost_worker_did_not_live_to_record_is_recorded(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1))
        old, new = "checkpoints/training-1", "checkpoints/training-2"
        removed = CheckpointRemovedEvent(seq=5, time=scenes.TIME, path=old)
        left = LostRun(events=[scenes.checkpoint(3, 1), scenes.checkpoint(4, 2), removed, scenes.progress(6, 3)])
        assert later(database, job_id, 31, folders=left).requeued == [job_id]
        assert (row(database, job_id).step, attempts(database, job_id)[0].recorded_seq) == (3, 6)
        with database.write() as session:
            pass_time(session, job_id, 1000)
        assert [point.path for point in take(database).resume] == [new]

    def test_what_no_database_takes_does_not_hold_a_sweep_up(self, database: Database) -> None:
        job_id, _ = running(database)
        left = LostRun(events=[scenes.checkpoint(3, 1).model_copy(update={"bytes": 1 << 80})])
        assert later(database, job_id, 31, folders=left).requeued == [job_id]
        assert attempts(database, job_id)[0].recorded_seq == 2

    def test_a_live_lease_is_left_alone(self, database: Database) -> None:
        job_id, _ = running(database)
        done = later(database, job_id, 20)
        assert (done.requeued, done.wake, row(database, job_id).state) == ([], [], S.RUNNING)

    def test_a_frozen_sweep_recovers_nothing(self, database: Database) -> None:
        job_id, _ = running(database)
        assert later(database, job_id, 100, recover_leases=False).requeued == []

    def test_again_changes_nothing(self, database: Database) -> None:
        job_id, _ = running(database)
        later(database, job_id, 31)
        before = row(database, job_id)
        done = sweep(database)
        assert done.requeued == [] and row(database, job_id).event_seq == before.event_seq

    def test_cancel_is_finished_for_a_holder_that_will_not(self, database: Database) -> None:
        job_id, taken = running(database)
        ask(database, job_id, "request_cancel")
        with database.write() as session:
            pass_time(session, job_id, 91)
            renew(session, taken, 30)
        assert sweep(database).cancelled == [job_id]
        with pytest.raises(StaleAttempt):
            end(database, taken, Outcome.stopped())

    def test_lost_while_pausing_or_cancelling(self, database: Database) -> None:
        pausing, _ = running(database)
        cancelling, _ = running(database)
        ask(database, pausing, "request_pause")
        ask(database, cancelling, "request_cancel")
        assert later(database, pausing, 31).paused == [pausing]
        assert later(database, cancelling, 31).cancelled == [cancelling]

    def test_deadline(self, database: Database) -> None:
        held, taken = running(database, scheduling={"max_runtime_seconds": 100})
        queued, other = running(database, scheduling={"max_runtime_seconds": 100})
        end(database, other, Outcome.stopped())
        with database.write() as session:
            pass_time(session, held, 101)
            desired = renew(session, taken, 30)
            assert desired.seconds_to_deadline == 0.0
        assert sweep(database).expired == []  # the holder writes its last checkpoint
        assert later(database, held, 95, recover_leases=False).expired == [held]
        assert later(database, queued, 101).expired == [queued]
        job = row(database, held)
        assert job.failure is not None and job.failure["code"] == "time_limit" and job.fence > taken.fence
        assert ask(database, held, "retry") is S.QUEUED
        take(database, held)
        assert later(database, held, 50, recover_leases=False).expired == []

    def test_wakes_what_nobody_heard_of(self, database: Database) -> None:
        low = make_job(database)
        high = make_job(database, scheduling={"priority": 1})
        idle(database)
        idle(database)
        assert sweep(database).wake == [high, low]
        assert sweep(database).wake == []
        before = scenes.row(database, low)
        assert later(database, low, 16).wake == [low]
        assert scenes.row(database, low).version == before.version

    def test_announces_no_more_than_there_are_idle_workers(self, database: Database) -> None:
        """Messages that nobody takes pile up in the broker: a week of them would fill its memory."""
        jobs = [make_job(database) for _ in range(3)]
        assert sweep(database).wake == [], "nobody is there, and whoever comes looks by itself"
        busy, other = idle(database), idle(database)
        with database.write() as session:
            WorkerRepository(session).request_drain(idle(database, session))
            WorkerRepository(session).stop(idle(database, session))
            WorkerRepository(session).heartbeat(idle(database, session), problems=["the accelerator is in use"])
            silent = WorkerRepository(session).get(idle(database, session))
            silent.heartbeat_at -= dt.timedelta(seconds=60)
        taken = take(database, jobs[0], worker=busy)
        assert sweep(database).wake == [jobs[1]]
        take(database, jobs[1], worker=other)
        assert sweep(database).wake == [], "the busy look for work when they are done"
        end(database, taken, Outcome.stopped())
        assert sweep(database).wake == [jobs[0]]

    def test_one_job_that_cannot_be_recovered_keeps_no_other_from_it(self, database: Database) -> None:
        first, _ = running(database)
        second, _ = running(database)
        with database.write() as session:
            # As no code of ours leaves it: held, without the row of its attempt.
            session.execute(delete(Attempt).where(Attempt.job_id == min(first, second)))
            pass_time(session, first, 31)
            pass_time(session, second, 31)
        done = sweep(database)
        assert done.requeued == [max(first, second)]

    def test_a_log_that_cannot_be_read_keeps_no_job_from_its_recovery(self, database: Database) -> None:
        class Unreadable(LostRun):
            def log_tail(self, job_id: str, attempt: int) -> bytes | None:
                raise OSError(errno.EIO, "Input/output error")

        job_id, _ = running(database)
        assert later(database, job_id, 31, folders=Unreadable()).requeued == [job_id]

    def test_a_retry_waits_until_the_trainer_of_an_expired_job_is_surely_dead(self, database: Database) -> None:
        """The holder renews its lease and does not stop; that it hears of its end takes until its next renewal."""
        job_id, taken = running(database, scheduling={"max_runtime_seconds": 100})
        with database.write() as session:
            pass_time(session, job_id, 195)
            renew(session, taken, 30)
        assert sweep(database).expired == [job_id]
        assert ask(database, job_id, "retry") is S.QUEUED
        with database.write() as session:
            assert claim(session, "wrk_b", "host", 1, 30.0) is None
        assert sweep(database).wake == []
        with database.write() as session:
            pass_time(session, job_id, 29)
            assert claim(session, "wrk_b", "host", 1, 30.0) is None
            pass_time(session, job_id, 2)
            assert claim(session, "wrk_b", "host", 1, 30.0) is not None


def idle(database: Database, session: Session | None = None) -> str:
    """A worker that has just registered; its id."""
    if session is None:
        with database.write() as own:
            return idle(database, own)
    return WorkerRepository(session).register(host="h", pid=1, heartbeat_seconds=5.0).id


class TestWishes:
    def test_cancel_at_once_where_nothing_runs(self, database: Database) -> None:
        assert ask(database, make_job(database), "request_cancel") is S.CANCELLED
        paused = make_job(database)
        assert ask(database, paused, "request_pause") is S.PAUSED
        assert ask(database, paused, "request_cancel") is S.CANCELLED

    @pytest.mark.parametrize(("keep", "left"), [(Keep.BEST, [2]), (Keep.LAST, [3]), (Keep.NONE, [])])
    def test_cancel_keeps_what_is_asked_for(self, database: Database, keep: Keep, left: list[int]) -> None:
        job_id, taken = running(database)
        say(
            database,
            taken,
            scenes.checkpoint(3, 1),
            scenes.checkpoint(4, 2, best=True),
            scenes.checkpoint(5, 3),
        )
        assert ask(database, job_id, "request_cancel", keep) is S.CANCELLING
        with database.write() as session:
            desired = renew(session, taken, 30)
            assert (desired.state, desired.keep) == (DesiredState.CANCEL, keep)
        assert ask(database, job_id, "request_cancel", keep) is S.CANCELLING
        assert end(database, taken, Outcome.stopped(exit_code=75)) is S.CANCELLED
        with database.write() as session:
            assert [c.step for c in CheckpointRepository(session).list(row(database, job_id)).items] == left
        doomed = sweep(database).delete_checkpoints
        with database.write() as session:
            assert sorted(d.path[-1] for d in doomed) == sorted({"1", "2", "3"} - {str(step) for step in left})
            for one in doomed:
                CheckpointRepository(session).purge(one.id)
        assert sweep(database).delete_checkpoints == []

    def test_pause_and_resume(self, database: Database) -> None:
        job_id, taken = running(database)
        assert ask(database, job_id, "request_pause") is S.PAUSING
        assert ask(database, job_id, "request_pause") is S.PAUSING
        with database.write() as session:
            assert renew(session, taken, 30).state is DesiredState.PAUSE
        say(database, taken, scenes.checkpoint(3, 4), scenes.checkpoint(4, 5))
        assert end(database, taken, Outcome.stopped(exit_code=75)) is S.PAUSED
        with database.write() as session:
            assert claim(session, "wrk_a", "h", 1, 30) is None
        assert ask(database, job_id, "resume") is S.QUEUED
        again = take(database)
        assert [point.path for point in again.resume] == ["checkpoints/training-5", "checkpoints/training-4"]
        assert again.resume[0].attempt == 1

    def test_resume_while_still_pausing(self, database: Database) -> None:
        job_id, taken = running(database)
        ask(database, job_id, "request_pause")
        assert ask(database, job_id, "resume") is S.PAUSING
        assert end(database, taken, Outcome.stopped(exit_code=75)) is S.QUEUED

    def test_a_resume_before_the_holder_has_heard_of_the_pause(self, database: Database) -> None:
        """It still stops: a job that trains on would be called `pausing` to its end."""
        job_id, taken = running(database)
        ask(database, job_id, "request_pause")
        ask(database, job_id, "resume")
        with database.write() as session:
            assert renew(session, taken, 30).state is DesiredState.PAUSE
        assert end(database, taken, Outcome.stopped(exit_code=75)) is S.QUEUED
        again = take(database, job_id)
        with database.write() as session:
            assert renew(session, again, 30).state is DesiredState.RUN

    def test_a_pause_that_could_not_save_says_so(self, database: Database) -> None:
        job_id, taken = running(database)
        ask(database, job_id, "request_pause")
        assert end(database, taken, Outcome.stopped(signal=9)) is S.PAUSED
        with database.read() as session:
            said = EventRepository(session).latest(row(database, job_id)).items[0]
        assert "was not saved" in said.message and said.level == "warning"

    def test_a_failed_save_while_pausing(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1))
        ask(database, job_id, "request_pause")
        assert end(database, taken, scenes.failure("system", "disk_full")) is S.FAILED
        with database.read() as session:
            assert len(CheckpointRepository(session).list(row(database, job_id)).items) == 1

    @pytest.mark.parametrize(("start", "points"), [(RetryFrom.CHECKPOINT, 1), (RetryFrom.START, 0)])
    def test_retry(self, database: Database, start: RetryFrom, points: int) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1))
        end(database, taken, scenes.failure("system"))
        assert ask(database, job_id, "retry", start) is S.QUEUED
        job = row(database, job_id)
        assert (job.failure, job.finished_at, job.retries) == (None, None, 0)
        assert len(take(database).resume) == points

    def test_terminal_refuses(self, database: Database) -> None:
        job_id = make_job(database)
        ask(database, job_id, "request_cancel")
        for verb in ("request_cancel", "request_pause", "resume", "retry"):
            with pytest.raises(Conflict):
                ask(database, job_id, verb)
        assert row(database, job_id).state is S.CANCELLED

    def test_someone_elses_is_not_found(self, database: Database) -> None:
        job_id = make_job(database)
        with database.read() as session:
            with pytest.raises(NotFound):
                JobRepository(session).get("someone-else", job_id)
            assert JobRepository(session).list("someone-else").items == []
            with pytest.raises(NotFound):
                JobRepository(session).list("someone-else", after=job_id)

    def test_fork_and_delete(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1), scenes.student(4))
        end(database, taken, scenes.success())
        with database.write() as session:
            repository = JobRepository(session)
            (origin,) = CheckpointRepository(session).list(row(database, job_id)).items
            fork = repository.create(owner_id=OWNER, spec=scenes.make_spec(seed=1), forked_from=origin).id
            with pytest.raises(Conflict, match="begins from"):
                repository.request_delete(repository.get(OWNER, job_id))
            with pytest.raises(Conflict):
                CheckpointRepository(session).request_delete(origin)
        assert [(p.job_id, p.path) for p in take(database, fork).resume] == [(job_id, "checkpoints/training-1")]
        ask(database, fork, "request_cancel")
        assert later(database, fork, 91).cancelled == [fork]
        ask(database, job_id, "request_delete")
        with database.read() as session:
            assert JobRepository(session).get(OWNER, job_id).deleting
            assert [job.id for job in JobRepository(session).list(OWNER).items] == [fork]
        for _ in range(2):  # a sweeper that died in between finds it again
            assert sweep(database).delete_jobs == [job_id]
        with database.write() as session:
            JobRepository(session).purge(job_id)
            JobRepository(session).purge(job_id)
        assert sweep(database).delete_jobs == []
        with database.write() as session:
            with pytest.raises(NotFound):
                JobRepository(session).get(OWNER, job_id)
            assert ModelRepository(session).list(OWNER).items == []

    def test_no_fork_of_what_goes(self, database: Database) -> None:
        """The checkpoint was found before its job, or itself, was deleted."""
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1), scenes.checkpoint(4, 2))
        with database.read() as session:
            newest, oldest = CheckpointRepository(session).list(row(database, job_id)).items
        gone = CheckpointRemovedEvent(seq=5, time=scenes.TIME, path="checkpoints/training-1")
        say(database, taken, gone)
        end(database, taken, scenes.failure("system"))
        with database.write() as session, pytest.raises(Conflict) as caught:
            repository = JobRepository(session)
            repository.create(owner_id=OWNER, spec=scenes.make_spec(), forked_from=session.merge(oldest, load=False))
        assert caught.value.code == "checkpoint_gone"
        ask(database, job_id, "request_delete")
        with database.write() as session, pytest.raises(Conflict) as caught:
            repository = JobRepository(session)
            repository.create(owner_id=OWNER, spec=scenes.make_spec(), forked_from=session.merge(newest, load=False))
        assert caught.value.code == "checkpoint_gone"

    def test_retry_of_a_fork_whose_origin_is_gone(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1))
        end(database, taken, scenes.failure("system"))
        with database.write() as session:
            (origin,) = CheckpointRepository(session).list(row(database, job_id)).items
            fork = JobRepository(session).create(owner_id=OWNER, spec=scenes.make_spec(), forked_from=origin).id
        end(database, take(database, fork), scenes.failure("system"))
        with database.write() as session:
            CheckpointRepository(session).request_delete(CheckpointRepository(session).get(OWNER, origin.id))
        with pytest.raises(Conflict, match="was deleted"):
            ask(database, fork, "retry")

    def test_what_a_fork_held_back_at_a_cancel_goes_with_the_fork(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1))
        with database.write() as session:
            (origin,) = CheckpointRepository(session).list(row(database, job_id)).items
            fork = JobRepository(session).create(owner_id=OWNER, spec=scenes.make_spec(), forked_from=origin).id
        ask(database, job_id, "request_cancel", Keep.NONE)
        end(database, taken, Outcome.stopped(exit_code=75))
        assert sweep(database).delete_checkpoints == []
        ask(database, fork, "request_cancel")
        assert [one.id for one in sweep(database).delete_checkpoints] == [origin.id]

    def test_retry_of_a_job_whose_file_is_gone(self, database: Database) -> None:
        with database.write() as session:
            files = FileRepository(session)
            file = files.create(id=new_id("file"), owner_id=OWNER, filename="f", purpose="x", bytes=1, sha256="0")
        job_id = make_job(database, dataset={"file": file.id})
        end(database, take(database, job_id), scenes.failure("system"))
        with database.write() as session:
            FileRepository(session).request_delete(file)
        with pytest.raises(Conflict) as caught:
            ask(database, job_id, "retry")
        assert caught.value.code == "file_gone"
        assert row(database, job_id).state is S.FAILED

    def test_only_finished_jobs_are_deleted(self, database: Database) -> None:
        job_id, _ = running(database)
        with pytest.raises(Conflict, match="cancel it"):
            ask(database, job_id, "request_delete")

    def test_update_moves_the_deadline(self, database: Database) -> None:
        job_id, _ = running(database, scheduling={"max_runtime_seconds": 100})
        with database.write() as session:
            repository = JobRepository(session)
            repository.update(repository.get(OWNER, job_id), name="new", metadata={"a": "b"}, max_runtime_seconds=200)
        job = row(database, job_id)
        assert job.started_at is not None and job.deadline_at is not None
        assert (job.deadline_at - job.started_at).total_seconds() == 200
        assert (job.name, job.user_metadata) == ("new", {"a": "b"})

    def test_a_limit_that_a_started_job_is_given_counts_from_its_start(self, database: Database) -> None:
        job_id, taken = running(database)

        def limit(seconds: int) -> float:
            with database.write() as session:
                repository = JobRepository(session)
                repository.update(repository.get(OWNER, job_id), max_runtime_seconds=seconds)
            job = row(database, job_id)
            assert job.deadline_at is not None and job.started_at is not None
            return (job.deadline_at - job.started_at).total_seconds()

        assert limit(100) == 100
        with database.write() as session:
            left = renew(session, taken, 30).seconds_to_deadline
        assert left is not None and 90 < left <= 100
        # A retry counts anew, and so does a limit that is changed after it.
        with database.write() as session:
            session.get_one(Job, job_id).started_at -= dt.timedelta(hours=10)  # type: ignore[operator]
        end(database, taken, scenes.failure("system"))
        ask(database, job_id, "retry")
        with database.write() as session:
            repository = JobRepository(session)
            assert repository.update(repository.get(OWNER, job_id), max_runtime_seconds=50).deadline_at is None
        again = take(database, job_id)
        assert limit(70) == 70
        with database.write() as session:
            left = renew(session, again, 30).seconds_to_deadline
        assert left is not None and 60 < left <= 70


class TestRetention:
    def test_old_attempts_leave_the_newest_the_best_and_the_pinned(self, database: Database) -> None:
        job_id, taken = running(database, training={"keep_checkpoints": 1})
        say(database, taken, *(scenes.checkpoint(2 + step, step, best=step == 2) for step in range(1, 5)))
        with database.write() as session:
            repository = CheckpointRepository(session)
            first = next(c for c in repository.list(row(database, job_id)).items if c.step == 1)
            repository.set_pinned(first, True)
        end(database, taken, Outcome.stopped())
        again = take(database)
        assert [point.step for point in again.resume] == [4, 3, 2, 1]
        say(database, again, scenes.checkpoint(1, 5))
        with database.read() as session:
            items = CheckpointRepository(session).list(row(database, job_id)).items
            assert [c.step for c in items] == [5, 2, 1]

    def test_a_renewal_learns_what_its_own_attempt_has_pinned(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1), scenes.checkpoint(4, 2))
        end(database, taken, Outcome.stopped())
        again = take(database)
        say(database, again, scenes.checkpoint(1, 3), scenes.checkpoint(2, 4))
        with database.write() as session:
            repository = CheckpointRepository(session)
            assert renew(session, again, 30.0).pinned == frozenset()
            rows = repository.list(row(database, job_id)).items
            for one in rows:
                repository.set_pinned(one, one.step in (2, 3))
            assert renew(session, again, 30.0).pinned == {"checkpoints/training-3"}
            repository.set_pinned(next(one for one in rows if one.step == 3), False)
            assert renew(session, again, 30.0).pinned == frozenset()

    def test_one_that_the_trainer_has_removed_meanwhile_is_not_found(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1))
        with database.read() as session:
            (one,) = CheckpointRepository(session).list(row(database, job_id)).items
        gone = CheckpointRemovedEvent(seq=4, time=scenes.TIME, path="checkpoints/training-1")
        say(database, taken, gone)
        with database.write() as session:
            repository = CheckpointRepository(session)
            for change in (
                lambda: repository.set_pinned(one, True),
                lambda: repository.set_expires_at(one, None),
                lambda: repository.request_delete(one),
            ):
                with pytest.raises(NotFound):
                    change()

    def test_expiry(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1), scenes.checkpoint(4, 2))
        with database.write() as session:
            repository = CheckpointRepository(session)
            for one in repository.list(row(database, job_id)).items:
                repository.set_expires_at(one, database.now(session))
                repository.set_pinned(one, one.step == 2)
        assert [d.path for d in sweep(database).delete_checkpoints] == ["checkpoints/training-1"]

    def test_what_an_attempt_may_go_on_from_stays_until_it_has_its_own(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1), scenes.checkpoint(4, 2))
        end(database, taken, Outcome.stopped())
        with database.write() as session:
            repository = CheckpointRepository(session)
            newest, oldest = repository.list(row(database, job_id)).items
        again = take(database)

        def refused() -> None:
            with database.write() as session:
                repository = CheckpointRepository(session)
                repository.set_expires_at(oldest, database.now(session))
                with pytest.raises(Conflict, match="may go on from") as caught:
                    repository.request_delete(newest)
                assert caught.value.code == "in_use"
            assert sweep(database).delete_checkpoints == []

        refused()
        say(database, again, scenes.phase(1), scenes.progress(2, 3))
        refused()
        assert ask(database, job_id, "request_pause") is S.PAUSING
        refused()
        say(database, again, scenes.checkpoint(3, 3))
        with database.write() as session:
            CheckpointRepository(session).request_delete(newest)
        assert {one.id for one in sweep(database).delete_checkpoints} == {newest.id, oldest.id}

    def test_a_lost_attempt_and_a_fresh_start_need_no_checkpoint(self, database: Database) -> None:
        job_id, taken = running(database)
        say(database, taken, scenes.checkpoint(3, 1), scenes.checkpoint(4, 2))
        end(database, taken, Outcome.stopped())
        with database.read() as session:
            newest, oldest = CheckpointRepository(session).list(row(database, job_id)).items
        take(database)
        assert later(database, job_id, 31).requeued == [job_id]
        with database.write() as session:
            CheckpointRepository(session).request_delete(newest)
            pass_time(session, job_id, 400)
        again = take(database)
        assert [point.step for point in again.resume] == [1], "what is being deleted is given to nobody"
        end(database, again, scenes.failure("system"))
        ask(database, job_id, "retry", RetryFrom.START)
        assert take(database).resume == ()
        with database.write() as session:
            CheckpointRepository(session).request_delete(oldest)


class TestLists:
    def test_pages_forward_and_back(self, database: Database) -> None:
        ids = [make_job(database, metadata={"n": str(number % 2)}) for number in range(5)]
        newest = list(reversed(ids))
        with database.read() as session:
            repository = JobRepository(session)
            page = repository.list(OWNER, limit=2)
            assert ([job.id for job in page.items], page.has_more) == (newest[:2], True)
            page = repository.list(OWNER, limit=3, after=newest[1])
            assert ([job.id for job in page.items], page.has_more) == (newest[2:], False)
            page = repository.list(OWNER, limit=2, before=newest[3])
            assert ([job.id for job in page.items], page.has_more) == (newest[1:3], True)
            page = repository.list(OWNER, order="asc", metadata={"n": "1"})
            assert [job.id for job in page.items] == [ids[1], ids[3]]
            assert repository.list(OWNER, states=[S.FAILED]).items == []

    def test_a_cursor_is_a_position_also_when_its_job_is_gone(self, database: Database) -> None:
        ids = [make_job(database) for _ in range(5)]
        with database.write() as session:
            session.execute(delete(Job).where(Job.id == ids[2]))
        with database.read() as session:
            repository = JobRepository(session)
            assert [job.id for job in repository.list(OWNER, after=ids[2]).items] == [ids[1], ids[0]]
            assert [job.id for job in repository.list(OWNER, before=ids[2], limit=1).items] == [ids[3]]
            assert [job.id for job in repository.list(OWNER, after=ids[2], order="asc").items] == ids[3:]
            assert repository.list(OWNER, metadata={"n": "1'\"; --"}).items == []


class TestHostileText:
    def test_ids_that_no_database_can_hold_find_nothing(self, database: Database) -> None:
        make_job(database)
        with database.read() as session:
            for name in ("\x00", "job_\ud800"):
                with pytest.raises(NotFound):
                    JobRepository(session).get(OWNER, name)
                with pytest.raises(NotFound):
                    ModelRepository(session).get(OWNER, name)

    def test_control_characters_in_names_and_metadata(self, database: Database) -> None:
        make_job(database, name="a\x00b", metadata={"k\x00": "v\x1b[1m"})
        with database.read() as session:
            (head,) = JobRepository(session).list(OWNER, metadata={"k": "v"}).items
            (job,) = JobRepository(session).get_all([head.id])
            assert (job.name, job.user_metadata) == ("ab", {"k": "v"})
            assert len(JobRepository(session).list(OWNER, metadata={"k\x00": "v"}).items) == 1
