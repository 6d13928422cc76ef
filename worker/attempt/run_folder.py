"""The folder of one attempt: made fresh, with the spec, where its files and models lie, and what to resume from."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from minillm_core.spec import (
    STUDENT_DIR,
    Failure,
    FailureCategory,
    JobSpec,
    RunContext,
)
from minillm_core.spec.references import references
from minillm_core.spec.versions import dump_spec, read_spec
from store.bytes.blobs import LocalBlobs
from store.bytes.runs import RunFolder
from store.jobs.leases import Claim, ResumePoint
from store.settings import Settings
from worker.attempt.manifests import ManifestError, Unreadable, verify
from worker.process.guardian import LIFELINE_FD

logger = logging.getLogger(__name__)

VERIFIED_CHECKPOINTS = 2
"""How many good checkpoints are looked for: the trainer checks again and may have to take the second."""


class Unresolvable(Exception):
    """Something that the job needs is not on this machine.

    ``missing`` is where it should lie, where the service has it: another machine, or this one once its disks are
    mounted, can do the job. None where it is nowhere any more.
    """

    def __init__(self, failure: Failure, missing: Path | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.missing = missing


@dataclass(frozen=True)
class PreparedRun:
    """A run folder that a trainer can be started on."""

    run_dir: Path
    spec: JobSpec
    damaged: list[tuple[ResumePoint, ManifestError]] = field(default_factory=list)
    """Checkpoints that are passed over, and why."""


def prepare(
    claim: Claim, settings: Settings, *, model_folder: Callable[[str], Path | None], keep_going: Callable[[], bool]
) -> PreparedRun:
    """Write ``spec.json`` and ``run.json`` into the attempt's own folder.

    `model_folder` gives the folder of a model, or None. `keep_going` is asked between checkpoints,
    whose verification can take minutes.
    Raises Unresolvable, ValueError for a spec that this release cannot read, and OSError.
    """
    spec = read_spec(claim.spec)
    run = settings.runs.attempt(claim.job_id, claim.attempt)
    run_dir = run.path
    if run_dir.exists():
        # Only after the database went back to an older state: what lies there is not this attempt's.
        run_dir.rename(run_dir.with_name(f"{run_dir.name}.before-{claim.attempt_id}"))
    run_dir.mkdir(parents=True)
    for number in range(1, claim.attempt):
        # Of those whose worker died as well. Whoever may still write there lost the job long ago.
        remove_leftovers(settings.runs.attempt(claim.job_id, number).path)
    damaged: list[tuple[ResumePoint, ManifestError]] = []
    good = _resumable(claim, settings, damaged, keep_going)
    if not good and keep_going():
        _may_begin_afresh(claim, settings, damaged)
    context = RunContext(
        job_id=claim.job_id,
        attempt=claim.attempt,
        models=_models(spec, settings, model_folder),
        files=_files(spec, settings),
        resume_from=[str(path) for path in good],
        forked=claim.forked,
        hub_cache=os.environ.get("HF_HUB_CACHE"),
        hub_offline=settings.hub_offline or not settings.hub_enabled,
        lifeline_fd=LIFELINE_FD,
    )
    run.spec.write_text(dump_spec(spec, indent=1), encoding="utf-8")
    run.context.write_text(context.model_dump_json(indent=1))
    return PreparedRun(run_dir, spec, damaged)


def remove_leftovers(run_dir: Path) -> None:
    """Remove what a dead trainer had not finished, all of which has hidden names.

    Checkpoints cut short would otherwise pile up on the disk of a job that lives for weeks.
    """
    folders = [run_dir, *(path for path in run_dir.glob("*/") if path.name != STUDENT_DIR)]
    for unfinished in [path for folder in folders for path in folder.glob(".*")]:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def write_pins(run_dir: Path, pinned: Collection[str]) -> None:
    """Tell the trainer which checkpoints (paths relative to the run folder) it must not remove. Raises OSError."""
    pins = RunFolder(run_dir).pinned
    aside = pins.with_name(f".{pins.name}")
    aside.write_text(json.dumps(sorted(PurePosixPath(path).name for path in pinned)))
    aside.replace(pins)


def _resumable(
    claim: Claim,
    settings: Settings,
    damaged: list[tuple[ResumePoint, ManifestError]],
    keep_going: Callable[[], bool],
) -> list[Path]:
    """The newest checkpoints that verify, newest first; the others found on the way go into `damaged`."""
    good: list[Path] = []
    for point in claim.resume:
        if len(good) == VERIFIED_CHECKPOINTS or not keep_going():
            break
        folder = settings.runs.attempt(point.job_id, point.attempt).inside(point.path)
        try:
            verify(folder, kind="checkpoint", manifest_sha256=point.manifest_sha256)
        except ManifestError as error:
            logger.warning("%s: checkpoint passed over: %s", claim.job_id, error)
            damaged.append((point, error))
        else:
            good.append(folder)
    return good


def _may_begin_afresh(claim: Claim, settings: Settings, damaged: Sequence[tuple[ResumePoint, ManifestError]]) -> None:
    """Raise Unresolvable where a start from the beginning would not be what was asked for.

    A fork would be another job. Any other job begins again where all its checkpoints are damaged, but not where one
    of them may be whole and only cannot be read here: what it would write soon displaces it.
    """
    for point, error in damaged:
        if isinstance(error, Unreadable):
            message = f"The checkpoint that this job goes on from cannot be read here: {error}"
            folder = settings.runs.attempt(point.job_id, point.attempt).inside(point.path)
            raise Unresolvable(_elsewhere("checkpoint_unreadable", message), folder)
    if claim.forked and damaged:
        message = f"The checkpoint that this job begins from cannot be used: {damaged[-1][1]}"
        raise Unresolvable(Failure(code="checkpoint_unreadable", category=FailureCategory.SYSTEM, message=message))
    if claim.forked:
        message = "The checkpoint that this job begins from is gone"
        raise Unresolvable(Failure(code="checkpoint_gone", category=FailureCategory.USER, message=message))


def _elsewhere(code: str, message: str, param: str | None = None) -> Failure:
    return Failure(code=code, category=FailureCategory.INFRASTRUCTURE, message=message, param=param, retryable=True)


def _models(spec: JobSpec, settings: Settings, model_folder: Callable[[str], Path | None]) -> dict[str, str]:
    folders: dict[str, str] = {}
    for named in references(spec):
        param, reference = named.pointer, named.name
        if named.kind == "file" or reference.startswith("hub:"):
            continue
        folder = None
        if reference.startswith("path:"):
            name = reference.removeprefix("path:")
            folder = settings.models_dir / name
            if folder.resolve() != settings.models_dir.resolve() / name:
                message = f"{reference} is a link, or lies outside of the models root"
                raise Unresolvable(
                    Failure(code="linked_folder", category=FailureCategory.USER, message=message, param=param)
                )
        if folder is None or not folder.is_dir():
            folder = model_folder(reference)
        if folder is None:
            message = f"there is no model {reference} any more"
            failure = Failure(code="model_not_found", category=FailureCategory.USER, message=message, param=param)
            raise Unresolvable(failure)
        if not folder.is_dir():
            message = f"the model {reference} is not on this machine"
            raise Unresolvable(_elsewhere("model_not_found", message, param), folder)
        folders[reference] = str(folder)
    return folders


def _files(spec: JobSpec, settings: Settings) -> dict[str, str]:
    blobs = LocalBlobs(settings.files_dir)
    paths: dict[str, str] = {}
    for named in references(spec):
        param, reference = named.pointer, named.name
        if named.kind != "file":
            continue
        try:
            # Finds ids alone: a path is how the trainer is run by hand.
            paths[reference] = str(blobs.path(reference))
        except FileNotFoundError:
            # An upload cannot be deleted while an unfinished job names it.
            failure = _elsewhere("file_not_found", f"the file {reference} is not on this machine", param)
            raise Unresolvable(failure, settings.files_dir / reference) from None
    return paths
