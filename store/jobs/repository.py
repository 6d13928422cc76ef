"""Jobs as their owners see and steer them. Ownership is part of every query: what is not yours is not found."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session

from minillm_core.spec import JobSpec
from minillm_core.spec.versions import dump_spec, read_spec
from store.db.clock import database_now
from store.db.errors import Conflict, NotFound
from store.db.ids import new_id
from store.db.paging import Order, Page, page
from store.db.printable import printable, printable_data
from store.db.tables import Artifact, Attempt, Checkpoint, Job, Model
from store.jobs import references, retention, standing
from store.jobs.endings import cancel_finally, resume_if_wanted
from store.jobs.standing import Queued, Timed, is_timed, time_left
from store.jobs.transitions import add_event, allowed, apply, lock
from store.jobs.vocabulary import ALIVE, TERMINAL, Cause, DesiredState, JobState, Keep, RetryFrom


@dataclass(frozen=True, slots=True)
class JobHead:
    """What tells whether a job has changed, and what changes without its row."""

    id: str
    version: int
    state: JobState
    priority: int
    created_at: dt.datetime
    seconds_left: float | None
    progress_at: dt.datetime | None


_HEAD = (Job.id, Job.version, Job.state, Job.priority, Job.created_at, Job.seconds_left, Job.progress_at)


class JobRepository:
    """All SQL about jobs that is not a claim, a lease or a sweep.

    Methods that change a job take one that :meth:`get` returned in the same write session; they
    lock and refresh it first.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    # -- creating and finding ------------------------------------------------------------------

    def create(self, *, owner_id: str, spec: JobSpec, forked_from: Checkpoint | None = None) -> Job:
        """A queued job. ``forked_from`` is a resumable checkpoint of the same owner that it begins from.

        Raises Conflict where the checkpoint cannot be resumed from (`checkpoint_not_resumable`), and where it, a file
        or a student that the spec names is being deleted (`checkpoint_gone`, `file_gone`, `model_gone`).
        """
        references.hold(self.session, spec, forked_from)
        if forked_from is not None and not forked_from.resumable:
            raise Conflict("checkpoint_not_resumable", f"checkpoint {forked_from.id} cannot be resumed from")
        now = database_now(self.session)
        job = Job(
            id=new_id("job"),
            owner_id=owner_id,
            kind=spec.kind,
            name=printable(spec.name) if spec.name is not None else None,
            spec=dump_spec(spec),
            user_metadata=printable_data(spec.metadata),
            seed=spec.seed,
            state=JobState.QUEUED,
            desired_state=DesiredState.RUN,
            priority=spec.scheduling.priority,
            attempt=0,
            fence=0,
            max_attempts=spec.scheduling.max_attempts,
            retries=0,
            stalled=0,
            resume_after_attempt=0,
            forked_from=forked_from.id if forked_from is not None else None,
            max_runtime_seconds=spec.scheduling.max_runtime_seconds,
            gpus=spec.resources.gpus,
            gpu_memory=spec.resources.gpu_memory_bytes,
            fraction=0.0,
            furthest_fraction=0.0,
            metrics={},
            keep_checkpoints=spec.training.keep_checkpoints,
            event_seq=0,
            deleting=False,
            created_at=now,
            updated_at=now,
        )
        self.session.add(job)
        apply(self.session, job, Cause.CREATE, message="Accepted", now=now)
        references.note(self.session, job.id, spec)
        return job

    def get(self, owner_id: str, job_id: str) -> Job:
        """Raises NotFound, also for someone else's job. A job being deleted is still found."""
        job = self.session.scalar(select(Job).where(Job.id == job_id, Job.owner_id == owner_id))
        if job is None:
            raise NotFound("job", job_id)
        return job

    def get_live(self, owner_id: str, job_id: str) -> Job:
        """The same, where a job being deleted is gone."""
        job = self.get(owner_id, job_id)
        if job.deleting:
            raise NotFound("job", job_id)
        return job

    def lock(self, job: Job) -> Job:
        """The row, fresh and locked to the end of the transaction. Raises NotFound."""
        return lock(self.session, job.id)

    def list(
        self,
        owner_id: str,
        *,
        limit: int = 20,
        order: Order = "desc",
        after: str | None = None,
        before: str | None = None,
        states: Collection[JobState] | None = None,
        metadata: Mapping[str, str] | None = None,
        created_after: dt.datetime | None = None,
        created_before: dt.datetime | None = None,
    ) -> Page[JobHead]:
        """A page of the heads of the owner's jobs; filters are joined by "and". Jobs being deleted are left out.

        Raises NotFound for a cursor that is no id of a job, or that of another owner's.
        """
        statement = select(*_HEAD).where(Job.owner_id == owner_id, Job.deleting.is_(False))
        if states:
            statement = statement.where(Job.state.in_(states))
        for name, value in (metadata or {}).items():
            statement = statement.where(self._metadata_is(printable(name), printable(value)))
        if created_after is not None:
            statement = statement.where(Job.created_at > created_after)
        if created_before is not None:
            statement = statement.where(Job.created_at < created_before)
        return page(
            self.session,
            statement,
            Job.created_at,
            Job.id,
            prefix="job",
            within=Job.owner_id == owner_id,
            limit=limit,
            order=order,
            after=after,
            before=before,
            fetch=lambda heads: (JobHead(*head) for head in self.session.execute(heads)),
        )

    def get_all(self, job_ids: Collection[str]) -> Sequence[Job]:
        """The rows of jobs that a list has given; those that are gone since are left out."""
        return self.session.scalars(select(Job).where(Job.id.in_(job_ids))).all() if job_ids else ()

    def depth(self) -> dict[JobState, int]:
        """How many jobs of all owners are in each state that is not terminal."""
        rows = self.session.execute(select(Job.state, func.count()).where(Job.state.in_(ALIVE)).group_by(Job.state))
        return {state: number for state, number in rows}

    def attempts(self, job: Job) -> Sequence[Attempt]:
        """Every attempt, oldest first."""
        return self.session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.number)).all()

    def attempt(self, job: Job, number: int) -> Attempt:
        """Raises NotFound."""
        row = self.session.scalar(select(Attempt).where(Attempt.job_id == job.id, Attempt.number == number))
        if row is None:
            raise NotFound("attempt", str(number))
        return row

    # -- where it stands -----------------------------------------------------------------------

    def queue_position(self, job: Queued) -> int | None:
        """1 for the job that the next free worker takes; None where it is not queued. Backoff counts as queued."""
        return standing.position(self.session, job)

    def queue_positions(self, jobs: Iterable[Queued]) -> dict[str, int]:
        """The places of those that are queued, by their ids, in one statement that passes over the queue once."""
        return standing.positions(self.session, jobs)

    def seconds_left(self, job: Timed) -> float | None:
        """Estimate of the running time still to go.

        None where there is none yet, where the job is terminal, and while it does not run (a
        queued job's wait depends on others).
        """
        return time_left(job, database_now(self.session)) if is_timed(job) else None

    # -- what its owner asks for ---------------------------------------------------------------

    def request_cancel(self, job: Job, keep: Keep = Keep.BEST) -> Job:
        """`cancelled` at once where nothing runs, else `cancelling`. Again is no error and may change ``keep``.

        Raises Conflict(`job_finished`) on a terminal job.
        """
        job = self._lock_unfinished(job)
        job.keep = keep
        if job.state is JobState.CANCELLING:
            self._touch(job)
            return job
        self._desire(job, DesiredState.CANCEL)
        if job.state in (JobState.QUEUED, JobState.PAUSED):
            cancel_finally(self.session, job, Cause.CANCEL)
        else:
            apply(self.session, job, Cause.CANCEL, message="Cancelling", data={"keep": str(keep)})
        return job

    def request_pause(self, job: Job) -> Job:
        """`paused` at once while queued, else `pausing` until the checkpoint is written. Again is no error.

        Raises Conflict(`job_finished`) on a terminal job and Conflict(`job_cancelling`).
        """
        job = self._lock_unfinished(job)
        if job.state is JobState.CANCELLING:
            raise Conflict("job_cancelling", "the job is being cancelled and cannot be paused")
        self._desire(job, DesiredState.PAUSE)
        if job.state not in (JobState.PAUSING, JobState.PAUSED):
            paused = job.state is JobState.QUEUED
            apply(self.session, job, Cause.PAUSE, message="Paused" if paused else "Pausing at the next step")
        else:
            self._touch(job)
        return job

    def resume(self, job: Job) -> Job:
        """`paused` to `queued`; a job still `pausing` is queued once it is paused. A running job is left as it is.

        Raises Conflict(`job_finished`) on a terminal job (a failed one is retried) and
        Conflict(`job_cancelling`).
        """
        job = self._lock_unfinished(job)
        if job.state is JobState.CANCELLING:
            raise Conflict("job_cancelling", "the job is being cancelled and cannot be resumed")
        if job.desired_state is not DesiredState.RUN:
            self._desire(job, DesiredState.RUN)
            self._touch(job)
        resume_if_wanted(self.session, job)
        return job

    def retry(self, job: Job, start: RetryFrom = RetryFrom.CHECKPOINT) -> Job:
        """Queue a failed or expired job again, with its retries and its time limit counted anew.

        Raises Conflict(`not_retryable`) in any other state, and while it is being deleted, and
        Conflict(`checkpoint_gone`, `file_gone`, `model_gone`) where something that it names is no more.
        """
        if not allowed(job.state, Cause.RETRY):
            raise self._not_retryable(job)
        self._hold_named(job)
        job = self.lock(job)
        if not allowed(job.state, Cause.RETRY) or job.deleting:
            raise self._not_retryable(job)
        if start is RetryFrom.START:
            job.resume_after_attempt = job.attempt
            job.fraction = job.furthest_fraction = 0.0
            job.metrics = {}
        job.retries = job.stalled = 0
        job.failure = None
        job.keep = None
        job.started_at = job.deadline_at = None
        job.dispatched_at = None
        self._desire(job, DesiredState.RUN)
        apply(self.session, job, Cause.RETRY, message="Retried", data={"start": str(start)})
        return job

    def update(
        self,
        job: Job,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        priority: int | None = None,
        max_runtime_seconds: int | None = None,
    ) -> Job:
        """Change what is given. Raises Conflict(`job_finished`) for scheduling fields of a terminal job."""
        job = self.lock(job)
        if (priority is not None or max_runtime_seconds is not None) and job.state in TERMINAL:
            raise Conflict("job_finished", f"the job is {job.state}; its scheduling cannot change any more")
        if name is not None:
            job.name = printable(name)
        if metadata is not None:
            job.user_metadata = printable_data(dict(metadata))
        if priority is not None:
            job.priority = priority
        if max_runtime_seconds is not None:
            job.max_runtime_seconds = max_runtime_seconds
            if job.started_at is not None:
                job.deadline_at = job.started_at + dt.timedelta(seconds=max_runtime_seconds)
        self._touch(job)
        return job

    def request_delete(self, job: Job) -> Job:
        """Mark a terminal job for deletion; sweeps go on until its folders and rows are gone. Again is no error.

        Raises Conflict(`job_not_finished`), and Conflict(`in_use`) while an unfinished job builds on
        its student or on one of its checkpoints.
        """
        job = self.lock(job)
        if job.state not in TERMINAL:
            raise Conflict("job_not_finished", f"the job is {job.state}; cancel it before deleting it")
        for checkpoint in self.session.scalars(select(Checkpoint.id).where(Checkpoint.job_id == job.id)):
            if retention.needed_by_fork(self.session, checkpoint):
                raise Conflict("in_use", f"an unfinished job begins from its checkpoint {checkpoint}")
        for model in self.session.scalars(_models_of(job)):
            name = references.unfinished_user(self.session, str(model))
            if name is not None:
                raise Conflict("in_use", f"the unfinished job {name} uses its student {model}")
        if not job.deleting:
            job.deleting = True
            add_event(self.session, job, "request", code="delete", message="Deletion requested")
        return job

    def purge(self, job_id: str) -> None:
        """Remove the rows of a job marked for deletion, once its folders are gone. Again is no error."""
        try:
            job = lock(self.session, job_id)
        except NotFound:
            return  # another sweeper was quicker
        if not job.deleting:
            return
        self.session.execute(delete(Model).where(Model.id.in_(_models_of(job))))
        self.session.execute(delete(Job).where(Job.id == job.id))  # the database cascades to what belongs to it

    # -- inside --------------------------------------------------------------------------------

    def _hold_named(self, job: Job) -> None:
        """Hold what a job that is there already names, before its own row: older rows are locked first."""
        origin = None
        if job.forked_from is not None:
            origin = self.session.get(Checkpoint, job.forked_from)
            if origin is None:
                raise Conflict("checkpoint_gone", f"the checkpoint {job.forked_from} that it begins from was deleted")
        try:
            spec = read_spec(job.spec)
        except ValueError:
            return  # of another version: the worker says so
        references.hold(self.session, spec, origin)

    def _not_retryable(self, job: Job) -> Conflict:
        return Conflict("not_retryable", f"only a failed or expired job can be retried; this one is {job.state}")

    def _lock_unfinished(self, job: Job) -> Job:
        job = self.lock(job)
        if job.state in TERMINAL:
            raise Conflict("job_finished", f"the job is {job.state}")
        return job

    def _desire(self, job: Job, desired: DesiredState) -> None:
        job.desired_state = desired
        job.desired_at = database_now(self.session)

    def _touch(self, job: Job) -> None:
        job.updated_at = database_now(self.session)
        self.session.flush()

    def _metadata_is(self, name: str, value: str) -> ColumnElement[bool]:
        # The name is data on both dialects, never part of a JSON path: any character may be in it.
        if self.session.get_bind().dialect.name == "sqlite":
            pairs: Any = func.json_each(Job.user_metadata).table_valued("key", "value")
            matching = select(pairs.c.key).where(pairs.c.key == name, pairs.c.value == value)
            return matching.correlate(Job).exists()
        return Job.user_metadata.op("->>")(name) == value


def _models_of(job: Job) -> Select[str | None]:
    """Ids of the models that a job made."""
    return select(Artifact.model_id).where(Artifact.job_id == job.id, Artifact.model_id.is_not(None))
