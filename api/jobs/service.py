"""Creates, forks and describes jobs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from sqlalchemy.orm import Session

from api.auth import Caller
from api.http.disk import require_space
from api.http.openapi import FieldErrorOut
from api.http.problems import Conflict, Forbidden, Invalid
from api.http.validation import validation_problem
from api.jobs.checked import Checked
from api.jobs.checks import check
from api.jobs.rendering import Rendering, etag
from api.jobs.schemas import DryRun, DryRunDataset, DryRunModel, ForkIn, JobOut, Progress
from api.services import Services, wake_after_commit
from minillm_core.spec import JobSpec, MiniLLM, parse_spec
from minillm_core.spec.model_folder import ModelDescription
from minillm_core.spec.versions import read_spec, shown_spec
from store.api_keys import ADMIN, PRIORITY
from store.db.tables import Checkpoint, Job
from store.jobs.artifacts import ArtifactRepository
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.repository import JobHead, JobRepository
from store.jobs.vocabulary import ArtifactKind, JobState
from store.quotas import check_queued, check_stored
from store.settings import Settings

# What a checkpoint is made of: a fork that changed these could not load it.
_FIXED_IN_A_FORK = ("teacher", "student")


def checked(spec: JobSpec, *, owner_id: str, services: Services, session: Session, again: bool = False) -> Checked:
    """Every check of a new job but whether its models are still where they were: `models.refresh` comes first.

    Raises Invalid, InsufficientStorage.
    """
    found = check(spec, owner_id=owner_id, services=services, session=session, again=again)
    require_space(services.settings)
    return found


def create(session: Session, spec: JobSpec, *, owner_id: str, forked_from: Checkpoint | None = None) -> Job:
    """A queued job, announced once the transaction has committed."""
    job = JobRepository(session).create(owner_id=owner_id, spec=spec, forked_from=forked_from)
    session.flush()
    wake_after_commit(session, job)
    return job


def dry_run(spec: JobSpec, found: Checked) -> DryRun:
    student = _dry_model(spec.student.model or "prune_teacher", found.student)
    pruning = spec.student.prune_teacher
    if pruning is not None:
        context = found.teacher.context_length if found.teacher is not None else None
        student = DryRunModel(reference="prune_teacher", parameters=None, layers=pruning.count, context_length=context)
    return DryRun(
        object="job.dry_run",
        spec=spec,
        method=spec.method.resolved() if isinstance(spec.method, MiniLLM) else None,
        teacher=_dry_model(spec.teacher.model, found.teacher),
        student=student,
        dataset=DryRunDataset(file=spec.dataset.file, rows=found.dataset_rows),
        warnings=_warnings(found),
    )


def _warnings(found: Checked) -> list[FieldErrorOut]:
    return [FieldErrorOut(code=told.code, param=told.param, detail=told.detail) for told in found.warnings]


def created(session: Session, job: Job, found: Checked) -> bytes:
    """A new job as it goes out, with what may keep it from running."""
    body, _ = written(session, job)
    return body.removesuffix(b"}") + b',"warnings":%b}' % to_json(_warnings(found))


def check_priority(caller: Caller, wanted: int, *, param: str, present: int = 0) -> None:
    """Raise Forbidden where a job would come before those of others and the caller may not have that."""
    if wanted > max(0, present) and not caller.may(PRIORITY):
        raise Forbidden(
            f"A priority above 0 needs a key with the scope {PRIORITY} or {ADMIN}.", code="scope_needed", param=param
        )


def hold_to_quotas(session: Session, owner_id: str, settings: Settings) -> None:
    """The last of a transaction that has queued a job. Raises store.db.errors.QuotaExceeded."""
    check_queued(session, owner_id, settings.max_queued_jobs)
    check_stored(session, owner_id, settings.max_stored_bytes)


def _dry_model(reference: str, model: ModelDescription | None) -> DryRunModel:
    return DryRunModel(
        reference=reference,
        parameters=model.parameters if model is not None else None,
        layers=model.layers if model is not None else None,
        context_length=model.context_length if model is not None else None,
    )


def fork_point(session: Session, job: Job, owner_id: str, checkpoint_id: str | None) -> Checkpoint:
    """The checkpoint that a fork begins from. Raises Invalid for another job's, Conflict without any."""
    checkpoints = CheckpointRepository(session)
    if checkpoint_id is None:
        newest = next((row for row in checkpoints.list(job, limit=100).items if row.resumable), None)
        if newest is None:
            raise Conflict("This job has no checkpoint to begin from.", code="no_checkpoint")
        return newest
    row = checkpoints.get(owner_id, checkpoint_id)
    if row.job_id != job.id:
        raise Invalid("This checkpoint is not one of this job.", param="/checkpoint")
    return row


def forked_spec(job: Job, fork: ForkIn) -> JobSpec:
    """The job's spec with the overrides merged in (RFC 7386). Raises Invalid."""
    for name in _FIXED_IN_A_FORK:
        if name in fork.overrides:
            raise Invalid(
                f"A fork keeps the {name} of its checkpoint.", code="not_overridable", param=f"/overrides/{name}"
            )
    document = _merged(stored_spec(job).model_dump(mode="json"), fork.overrides)
    try:
        return parse_spec(document)
    except ValidationError as error:
        problem = validation_problem([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()], document)
        for index, fault in enumerate(problem.errors if isinstance(problem, Invalid) else []):
            problem.errors[index] = type(fault)(fault.code, f"/overrides{fault.param}", fault.detail)
        problem.param = problem.errors[0].param
        raise problem from None


def _merged(target: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    """JSON merge patch (RFC 7386, section 2)."""
    result = copy.copy(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            result[name] = _merged(result.get(name), value)
        else:
            result[name] = value
    return result


def stored_spec(job: Job) -> JobSpec:
    """The spec with what has been changed since by PATCH. Raises Conflict where this release cannot read it."""
    try:
        spec = read_spec(job.spec)
    except ValueError:
        raise Conflict(
            "This release cannot read the job's spec, which another one wrote: submit a job of its own.",
            code="job_unreadable",
        ) from None
    spec.name = job.name
    spec.metadata = job.user_metadata
    spec.scheduling.priority = job.priority
    spec.scheduling.max_runtime_seconds = job.max_runtime_seconds
    return spec


def written(session: Session, job: Job) -> tuple[bytes, str]:
    """A job that this transaction has changed, as it goes out, and its entity tag.

    Nothing of it is kept in memory: the transaction may not commit, and the next one has the same version.
    """
    session.flush()
    jobs = JobRepository(session)
    place = jobs.queue_position(job)
    return Rendering.of(job_out(session, job)).with_values(jobs.seconds_left(job), place), etag(job.version, place)


def shown(
    session: Session, services: Services, jobs: Sequence[Job | JobHead], stamp: object
) -> list[tuple[bytes, str]]:
    """Jobs as they go out, and their entity tags; of those that have not changed no more than the head is read.

    `stamp` is the database's (:mod:`store.db.lookups`) from before the jobs were read, None where it is not known.
    Jobs that are gone since are left out.
    """
    repository = JobRepository(session)
    kept = {job.id: found for job in jobs if (found := services.renderings.get(job.id, job.version))}
    unknown = [job for job in jobs if job.id not in kept]
    rows = [job for job in unknown if isinstance(job, Job)]
    for row in rows or repository.get_all([job.id for job in unknown]):
        kept[row.id] = Rendering.of(job_out(session, row))
        services.renderings.keep(row.id, row.version, kept[row.id])
    queued = [job for job in jobs if job.state is JobState.QUEUED]
    places = {job.id: place for job in queued if (place := services.places.get(stamp, job.id)) is not None}
    if lacking := [job for job in queued if job.id not in places]:
        counted = repository.queue_positions(lacking)
        services.places.keep(stamp, counted)
        places.update(counted)
    return [
        (
            kept[job.id].with_values(repository.seconds_left(job), places.get(job.id)),
            etag(job.version, places.get(job.id)),
        )
        for job in jobs
        if job.id in kept
    ]


def job_out(session: Session, job: Job) -> JobOut:
    """The job without what changes while its row does not: the time left and its place in the queue."""
    spec = shown_spec(job.spec)
    succeeded = job.state is JobState.SUCCEEDED
    student = ArtifactRepository(session).verified(job, ArtifactKind.STUDENT) if succeeded else None
    scheduling = spec.get("scheduling")
    if isinstance(scheduling, dict):
        scheduling = {**scheduling, "priority": job.priority, "max_runtime_seconds": job.max_runtime_seconds}
    return JobOut(
        id=job.id,
        object="job",
        kind=job.kind,
        name=job.name,
        state=str(job.state),
        phase=job.phase,
        desired_state=str(job.desired_state),
        metadata=job.user_metadata,
        seed=job.seed,
        teacher=spec.get("teacher"),
        student=spec.get("student"),
        dataset=spec.get("dataset"),
        pretrain_corpus=spec.get("pretrain_corpus"),
        method=spec.get("method"),
        training=spec.get("training"),
        guards=spec.get("guards"),
        resources=spec.get("resources"),
        scheduling=scheduling,
        evaluation=spec.get("evaluation"),
        export=spec.get("export"),
        progress=Progress(
            step=job.step or 0,
            total_steps=job.total_steps,
            fraction=job.fraction,
            tokens_per_second=job.tokens_per_second,
            seconds_left=None,
        ),
        queue_position=None,
        metrics=job.metrics,
        attempt=job.attempt,
        failure=job.failure,
        report=job.report,
        student_model=student.model_id if student is not None else None,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        updated_at=job.updated_at,
    )
