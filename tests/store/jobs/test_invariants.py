"""A hypothesis state machine over the store: whatever users, holders and sweeps do, in whatever order.

Held after every step: a terminal state never changes but by an explicit retry of a failed or
expired job; the fence only rises; at most one attempt holds a lease; each change of state has
exactly one event, with the next sequence number; `succeeded` has its verified manifest; and what an
attempt may go on from stays until it has a checkpoint of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store.db.database import Database
from store.db.errors import Conflict, StaleAttempt
from store.db.tables import Attempt, Base, Checkpoint, Job
from store.jobs.artifacts import ArtifactRepository
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.events import EventRepository
from store.jobs.leases import Claim, Outcome, claim, finish, record, renew
from store.jobs.repository import JobRepository
from store.jobs.transitions import TERMINAL, TRANSITIONS, Cause, JobState
from store.jobs.vocabulary import HELD, ArtifactKind, AttemptState, Keep, RetryFrom
from tests.fixtures.sweep import sweep
from tests.store import scenes

INDEX = st.integers(0, 7)
STEP = st.integers(1, 10)
SWEEP = st.sampled_from([True, True, None, False])
ENDS = ["success", "stopped", "user", "system", "infrastructure", "oom", "limit"]
ACTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "create": {"attempts": st.integers(1, 3), "runtime": st.sampled_from([None, 50]), "priority": st.integers(0, 1)},
    "ask": {"index": INDEX, "verb": st.sampled_from(["request_pause", "resume", "request_delete"])},
    "cancel": {"index": INDEX, "keep": st.sampled_from(Keep)},
    "retry": {"index": INDEX, "start": st.sampled_from(RetryFrom)},
    "drop_checkpoints": {"index": INDEX, "at_once": st.booleans()},
    "fork": {"index": INDEX},
    "limit": {"index": INDEX, "seconds": st.sampled_from([50, 5000])},
    "pin": {"index": INDEX, "pinned": st.booleans()},
    "claim": {},
    "record": {"index": INDEX, "kind": st.sampled_from(["progress", "checkpoint", "student"]), "step": STEP},
    "renew": {"index": INDEX},
    "finish": {"index": INDEX, "how": st.sampled_from(ENDS)},
    "hand_over": {"index": INDEX, "step": STEP},
    "overstay": {"index": INDEX, "start": st.sampled_from(RetryFrom)},
    "sweep": {"recover": st.booleans()},
    "pass_time": {"seconds": st.sampled_from([31.0, 400.0, 10.0]), "index": INDEX, "recover": SWEEP},
}
OF_HOLDERS = {"record", "renew", "finish", "hand_over", "overstay"}


class Life(RuleBasedStateMachine):
    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[str] = []
        self.claims: list[tuple[Claim, int]] = []
        self.seen: dict[str, tuple[JobState, int, int, int]] = {}
        self.retried: set[str] = set()
        self.saved: set[str] = set()
        self.lease_left: dict[str, float] = {}
        """Seconds for which the last holder of a job may have a trainer, whatever the store did meanwhile."""
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))

    @initialize()
    def first(self) -> None:
        self.create(2, None, 0)

    @rule(action=st.sampled_from(sorted(ACTIONS)), data=st.data())
    def act(self, action: str, data: st.DataObject) -> None:
        """One rule for all: of many, each example would be without a random half, and few jobs would ever run."""
        if action in OF_HOLDERS and (not self.claims or data.draw(st.booleans(), label="claims first")):
            self.claim()
            if not self.claims:
                return
        drawn = {name: data.draw(strategy, label=name) for name, strategy in ACTIONS[action].items()}
        getattr(self, action)(**drawn)

    # -- users -------------------------------------------------------------------------------

    def create(self, attempts: int, runtime: int | None, priority: int) -> None:
        if sum(state not in TERMINAL for state, *_ in self.seen.values()) < 3:
            scheduling = {"max_attempts": attempts, "max_runtime_seconds": runtime, "priority": priority}
            self.jobs.append(scenes.make_job(self.database, scheduling=scheduling))

    def ask(self, index: int, verb: str) -> None:
        self._ask(index, verb)

    def cancel(self, index: int, keep: Keep) -> None:
        self._ask(index, "request_cancel", keep)

    def retry(self, index: int, start: RetryFrom) -> None:
        job_id = self._job(index)
        if self._ask(index, "retry", start):
            self.retried.add(job_id)

    def drop_checkpoints(self, index: int, at_once: bool) -> None:
        """Delete all of a job, or let the next sweep find that they have expired."""
        with self.database.write() as session:
            repository = CheckpointRepository(session)
            for row in repository.list(session.get_one(Job, self._job(index))).items:
                repository.set_expires_at(row, self.database.now(session))
                if at_once:
                    with contextlib.suppress(Conflict):
                        repository.request_delete(row)

    def fork(self, index: int) -> None:
        if sum(state not in TERMINAL for state, *_ in self.seen.values()) >= 3:
            return
        with self.database.write() as session:
            found = CheckpointRepository(session).list(session.get_one(Job, self._job(index))).items
            if not found:
                return
            with contextlib.suppress(Conflict):
                job = JobRepository(session).create(
                    owner_id=scenes.OWNER, spec=scenes.make_spec(), forked_from=found[index % len(found)]
                )
                self.jobs.append(job.id)

    def limit(self, index: int, seconds: int) -> None:
        with contextlib.suppress(Conflict), self.database.write() as session:
            repository = JobRepository(session)
            repository.update(repository.get(scenes.OWNER, self._job(index)), max_runtime_seconds=seconds)

    def pin(self, index: int, pinned: bool) -> None:
        with self.database.write() as session:
            repository = CheckpointRepository(session)
            for row in repository.list(session.get_one(Job, self._job(index))).items[:1]:
                repository.set_pinned(row, pinned)

    # -- holders, stale ones among them --------------------------------------------------------

    def claim(self) -> None:
        with self.database.write() as session:
            taken = claim(session, "wrk_a", "host", 1, 30.0)
        if taken is not None:
            if taken.job_id in self.seen:  # and not made since, by a sweep that left none
                assert taken.fence > self.seen[taken.job_id][1]
            # A little less by the database's clock, which this machine's work moves on.
            assert self.lease_left.get(taken.job_id, 0.0) < 5.0, "the trainer of the last holder may live"
            self.lease_left[taken.job_id] = 30.0
            self.claims.append((taken, 0))

    def record(self, index: int, kind: str, step: int) -> None:
        index = self._newest_first(index)
        taken, seq = self.claims[index]
        made: dict[str, Any] = {
            "progress": lambda: scenes.progress(seq + 1, step),
            "checkpoint": lambda: scenes.checkpoint(seq + 1, step, best=step % 2 == 0),
            "student": lambda: scenes.student(seq + 1),
        }
        if self._as_holder(taken, lambda session: record(session, taken, [made[kind]()])):
            self.claims[index] = (taken, seq + 1)
            if kind == "checkpoint":
                self.saved.add(taken.attempt_id)

    def renew(self, index: int) -> None:
        taken, _ = self.claims[self._newest_first(index)]
        if self._as_holder(taken, lambda session: renew(session, taken, 30.0)):
            self.lease_left[taken.job_id] = 30.0

    def finish(self, index: int, how: str) -> None:
        taken, seq = self.claims[self._newest_first(index)]
        outcomes = {
            "success": scenes.success(),
            "stopped": Outcome.stopped(exit_code=75),
            "oom": scenes.failure(code="out_of_memory"),
            "limit": scenes.failure("user", "time_limit"),
        }

        def end(session: Any) -> None:
            if how == "success":
                record(session, taken, [scenes.student(seq + 1)])
            finish(session, taken, outcomes.get(how) or scenes.failure(how))

        if self._as_holder(taken, end):
            self.lease_left[taken.job_id] = 0.0  # its trainer is dead

    def hand_over(self, index: int, step: int) -> None:
        """A worker saves and gives its job back, and somebody takes the next."""
        self.record(index, "checkpoint", step)
        self.finish(index, "stopped")
        self.claim()

    def overstay(self, index: int, start: RetryFrom) -> None:
        """A worker lives and does not stop, whatever it is told; its user tries again as soon as that is over."""
        taken, _ = self.claims[self._newest_first(index)]
        if taken.job_id not in self.jobs:
            return
        place = len(self.jobs) - 1 - self.jobs.index(taken.job_id)
        self.pass_time(400.0, place, None)
        self.renew(index)
        self.sweep(False)
        if taken.job_id in self.jobs:
            self.retry(len(self.jobs) - 1 - self.jobs.index(taken.job_id), start)
        self.claim()

    # -- the sweeper and the clock -------------------------------------------------------------

    def sweep(self, recover: bool) -> None:
        done = sweep(self.database, recover_leases=recover)
        with self.database.write() as session:
            for checkpoint in done.delete_checkpoints:
                CheckpointRepository(session).purge(checkpoint.id)
            for job_id in done.delete_jobs:
                JobRepository(session).purge(job_id)
                self.jobs.remove(job_id)
                del self.seen[job_id]
        if not self.jobs:
            self.create(2, None, 0)

    def pass_time(self, seconds: float, index: int, recover: bool | None) -> None:
        """``recover``: of the sweep that follows; None is no sweep."""
        with self.database.write() as session:
            job_id = self._job(index)
            scenes.pass_time(session, job_id, seconds)
            self.lease_left[job_id] = self.lease_left.get(job_id, 0.0) - seconds
        if recover is not None:
            self.sweep(recover)

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        with self.database.read() as session:
            jobs = session.scalars(select(Job)).all()
            assert {job.id for job in jobs} == set(self.jobs)
            for job in jobs:
                events = EventRepository(session).list(job, limit=10_000).items
                active = session.scalars(
                    select(Attempt).where(Attempt.job_id == job.id, Attempt.state == AttemptState.ACTIVE)
                ).all()
                self._check(session, job, events, active)
            for taken, _ in self.claims:
                self._check_resume_points(session, taken)
            self._check_checkpoints(session, jobs)
        self.retried.clear()

    def _check(self, session: Session, job: Job, events: Any, active: Any) -> None:
        state, fence, attempt, seq = self.seen.get(job.id, (None, 0, 0, 0))
        assert job.event_seq >= seq
        if state in TERMINAL and job.state is not state:
            assert state in (JobState.FAILED, JobState.EXPIRED) and job.id in self.retried
        assert job.fence >= fence and job.attempt >= attempt and (job.fence > fence or job.attempt == attempt)
        assert [event.seq for event in events] == list(range(1, job.event_seq + 1))
        # The events of type `state` are the path the job took, each edge in the table, none left out.
        was: str | None = None
        for event in (event for event in events if event.type == "state"):
            assert event.data["from"] == was
            was = event.data["to"]
            before = None if event.data["from"] is None else JobState(event.data["from"])
            assert JobState(str(was)) in TRANSITIONS[before, Cause(event.data["cause"])]
        assert was == job.state
        held = job.state in HELD
        assert len(active) == (1 if held else 0)
        assert (job.lease_expires_at is not None) == held == (job.lease_owner is not None)
        if held:
            assert (active[0].number, active[0].fence) == (job.attempt, job.fence)
        assert (job.finished_at is not None) == (job.state in TERMINAL)
        if job.state is JobState.SUCCEEDED:
            student = ArtifactRepository(session).verified(job, ArtifactKind.STUDENT)
            assert student is not None and student.attempt == job.attempt and student.model_id is not None
            assert hashlib.sha256(str(student.manifest).encode()).hexdigest() == student.manifest_sha256
        if job.state in (JobState.FAILED, JobState.EXPIRED):
            assert job.failure is not None
        assert job.retries <= job.max_attempts
        assert (job.deadline_at is not None) == (job.started_at is not None and job.max_runtime_seconds is not None)
        self.seen[job.id] = (job.state, job.fence, job.attempt, job.event_seq)

    def _check_resume_points(self, session: Session, taken: Claim) -> None:
        job = session.get(Job, taken.job_id)
        if job is None or job.fence != taken.fence or job.state not in HELD or taken.attempt_id in self.saved:
            return
        whole = select(Checkpoint).where(Checkpoint.deleting.is_(False))
        left = {(row.job_id, row.attempt, row.path) for row in session.scalars(whole)}
        assert {(point.job_id, point.attempt, point.path) for point in taken.resume} <= left

    def _check_checkpoints(self, session: Session, jobs: Any) -> None:
        for job in jobs:
            if job.forked_from is not None and job.state not in TERMINAL:
                origin = session.get(Checkpoint, job.forked_from)
                assert origin is not None and not origin.deleting
        assert not session.scalars(select(Checkpoint).where(Checkpoint.pinned, Checkpoint.deleting)).all()

    def _job(self, index: int) -> str:
        return self.jobs[len(self.jobs) - 1 - index % len(self.jobs)]

    def _newest_first(self, index: int) -> int:
        """Which claim: small numbers come often, and most old claims are stale."""
        return len(self.claims) - 1 - index % len(self.claims)

    def _ask(self, index: int, verb: str, *arguments: object) -> bool:
        job_id = self._job(index)
        try:
            with self.database.write() as session:
                repository = JobRepository(session)
                getattr(repository, verb)(repository.get(scenes.OWNER, job_id), *arguments)
        except Conflict:
            return False
        return True

    def _as_holder(self, taken: Claim, write: Any) -> bool:
        """Do it; refused exactly where the fence has moved on or the attempt has ended."""
        job = None
        with self.database.read() as session:
            job = session.get(Job, taken.job_id)
        current = job is not None and job.fence == taken.fence and job.state in HELD
        try:
            with self.database.write() as session:
                write(session)
        except StaleAttempt:
            assert not current
            return False
        assert current
        return True


def _run(database: Database, examples: int) -> None:
    machine = type("LifeOnADatabase", (Life,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_invariants(database: Database) -> None:
    _run(database, 40 if database.dialect == "sqlite" else 15)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_invariants_for_long(database: Database) -> None:
    _run(database, 200)
