"""What jobs name (files, students, checkpoints), held while a job that names them is made.

Checks of a spec take seconds and belong to no transaction. What they found may be deleted meanwhile, so the making
of a job looks again, under locks that those who delete take too: whoever comes second sees the other.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, bindparam, insert, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from minillm_core.spec import JobSpec
from minillm_core.spec.references import references
from store.db.errors import Conflict, NotFound
from store.db.ids import Prefix, is_id
from store.db.tables import Checkpoint, File, Job, JobReference, Model
from store.jobs.transitions import lock
from store.jobs.vocabulary import ALIVE

# Made once: putting a statement together takes longer than running it.
_HOLD_FILES = (
    select(File.id)
    .where(File.id.in_(bindparam("names", expanding=True)), File.deleting.is_(False))
    .order_by(File.id)
    .with_for_update(read=True)
)


_INSERT = insert(JobReference)


def hold(session: Session, spec: JobSpec, forked_from: Checkpoint | None) -> None:
    """Lock what a job names that is made or queued again.

    Raises Conflict where some of it is gone, or going (`checkpoint_gone`, `file_gone`, `model_gone`).
    """
    named = _ids(spec, "model")
    models = session.scalars(select(Model).where(Model.id.in_(named))).all() if named else ()
    jobs = {model.job_id for model in models if model.job_id is not None}
    if forked_from is not None:
        jobs.add(forked_from.job_id)
    # Ids sort by age, so that two who lock the same rows do it in the same order.
    going = {name for name in sorted(jobs) if _is_going(session, name)}
    if forked_from is not None:
        origin = session.get(Checkpoint, forked_from.id, populate_existing=True)
        if forked_from.job_id in going or origin is None or origin.deleting:
            raise Conflict("checkpoint_gone", f"the checkpoint {forked_from.id} that it begins from was deleted")
    if named:
        _check_models(session, spec)
    names = _ids(spec, "file")
    if not names:
        return
    if gone := names - set(session.scalars(_HOLD_FILES, {"names": sorted(names)})):
        raise Conflict("file_gone", f"the file {min(gone)} was deleted")


def _check_models(session: Session, spec: JobSpec) -> None:
    names = _ids(spec, "model")
    made = select(Model.id).outerjoin(Job, Job.id == Model.job_id).where(Model.id.in_(names), Job.deleting.is_not(True))
    if gone := names - set(session.scalars(made)):
        raise Conflict("model_gone", f"the model {min(gone)} was deleted")


def _is_going(session: Session, job_id: str) -> bool:
    """Whether a job is gone, or being deleted; if not, it stays so until the end of the transaction."""
    try:
        return lock(session, job_id).deleting
    except NotFound:
        return True


def note(session: Session, job_id: str, spec: JobSpec) -> None:
    """Keep what a new job names, to be asked by :func:`unfinished_user`."""
    named = {(found.kind, found.name) for found in references(spec)}
    # A file by its path is how the trainer is run by hand: nothing here can be deleted under it.
    kept = sorted((kind, name) for kind, name in named if kind != "file" or is_id(name, "file"))
    if kept:
        rows = [{"job_id": job_id, "kind": kind, "reference": name} for kind, name in kept]
        session.connection().execute(_INSERT, rows)


def unfinished_user(session: Session, reference: str) -> str | None:
    """The id of a job that names this and is not terminal, if there is one."""
    return session.scalar(_unfinished().where(JobReference.reference == reference).limit(1))


def is_used(reference: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The same as a condition on the rows whose column ``reference`` is the reference."""
    return _unfinished().where(JobReference.reference == reference).exists()


def _unfinished() -> Select[str]:
    return select(JobReference.job_id).join(Job, Job.id == JobReference.job_id).where(Job.state.in_(ALIVE))


def _ids(spec: JobSpec, prefix: Prefix) -> set[str]:
    """What may be ids of ours; a path, or a model of the hub, is nobody's to delete here."""
    return {found.name for found in references(spec) if is_id(found.name, prefix)}
