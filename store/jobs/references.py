"""What jobs name (files, students, checkpoints), held while a job that names them is made.

Checks of a spec take seconds and belong to no transaction. What they found may be deleted meanwhile, so the making
of a job looks again, under locks that those who delete take too: whoever comes second sees the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from minillm_core.spec import JobSpec
from store.db.errors import Conflict, NotFound
from store.db.ids import Prefix, is_id
from store.db.tables import Checkpoint, File, Job, Model
from store.jobs.transitions import lock


def hold(session: Session, spec: JobSpec, forked_from: Checkpoint | None) -> None:
    """Lock what a job names that is made or queued again.

    Raises Conflict where some of it is gone, or going (`checkpoint_gone`, `file_gone`, `model_gone`).
    """
    models = session.scalars(select(Model).where(Model.id.in_(_models(spec)))).all()
    jobs = {model.job_id for model in models if model.job_id is not None}
    if forked_from is not None:
        jobs.add(forked_from.job_id)
    # Ids sort by age, so that two who lock the same rows do it in the same order.
    going = {name for name in sorted(jobs) if _is_going(session, name)}
    if forked_from is not None:
        origin = session.get(Checkpoint, forked_from.id, populate_existing=True)
        if forked_from.job_id in going or origin is None or origin.deleting:
            raise Conflict("checkpoint_gone", f"the checkpoint {forked_from.id} that it begins from was deleted")
    _check_models(session, spec)
    names = _files(spec)
    held = select(File.id).where(File.id.in_(names), File.deleting.is_(False)).order_by(File.id)
    if gone := names - set(session.scalars(held.with_for_update(read=True))):
        raise Conflict("file_gone", f"the file {min(gone)} was deleted")


def _check_models(session: Session, spec: JobSpec) -> None:
    names = _models(spec)
    made = select(Model.id).outerjoin(Job, Job.id == Model.job_id).where(Model.id.in_(names), Job.deleting.is_not(True))
    if gone := names - set(session.scalars(made)):
        raise Conflict("model_gone", f"the model {min(gone)} was deleted")


def _is_going(session: Session, job_id: str) -> bool:
    """Whether a job is gone, or being deleted; if not, it stays so until the end of the transaction."""
    try:
        return lock(session, job_id).deleting
    except NotFound:
        return True


def _files(spec: JobSpec) -> set[str]:
    corpus = spec.pretrain_corpus
    named = (spec.dataset.file, corpus.file if corpus is not None else None, spec.evaluation.calibration_file)
    return _ids(named, "file")


def _models(spec: JobSpec) -> set[str]:
    return _ids((spec.teacher.model, spec.teacher.adapter, spec.student.model), "model")


def _ids(names: Iterable[str | None], prefix: Prefix) -> set[str]:
    """What may be an id of ours; a path, or a model of the hub, is nobody's to delete here."""
    return {name for name in names if name is not None and is_id(name, prefix)}
