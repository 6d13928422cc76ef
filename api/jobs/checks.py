"""What can be known of a job before it runs, without torch: its models, whether they fit, its files.

Every fault that can be found is reported at once. A model of the hub that is not on this machine yet is left to
the trainer, which looks at every model again, by the same check, before it loads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from sqlalchemy.orm import Session

from api.http.problems import FieldError, invalid
from api.jobs.checked import Checked
from api.services import Services
from minillm_core.spec import JobSpec, ResourceSpec
from minillm_core.spec.model_folder import FolderProblem, Inspection, ModelDescription
from minillm_core.spec.references import Reference, references
from minillm_core.spec.rows import BadRows, check_file
from minillm_core.spec.tokenizer_files import same_tokenizer
from store.bytes.model_folders import FOLDER_NAME
from store.db.errors import NotFound
from store.db.tables import File, Model, Worker
from store.files import FileRepository
from store.jobs.placement import Devices
from store.models import ModelRepository
from store.workers import WorkerRepository

_DATASET_PURPOSES = ("dataset", "fine-tune")
_FEWEST_ROWS = 2
_TOLD_WORKERS = 5


def check(spec: JobSpec, *, owner_id: str, services: Services, session: Session, again: bool = False) -> Checked:
    """Raise Invalid with every fault of the spec, or return what it names. `again`: nothing of a moment ago will do."""
    recent = services.recent_checks
    key = recent.key(spec, owner_id, services.models.generation)
    known = recent.get(key) if not again else None
    if known is None:
        found = Checked()
        _Models(found, owner_id, services, session).check(spec)
        _Files(found, owner_id, services, session).check(spec)
        if not found.faults:
            recent.keep(key, dataclasses.replace(found, faults=[], warnings=[*found.warnings]))
    else:
        found = dataclasses.replace(known, faults=[], warnings=[*known.warnings])
    _check_resources(found, spec.resources, WorkerRepository(session).online())
    if found.faults:
        raise invalid(found.faults, extensions={"line": found.line} if found.line is not None else None)
    return found


def _check_resources(found: Checked, wanted: ResourceSpec, workers: Sequence[Worker]) -> None:
    """Whether any worker that is online has what the job needs: if none has, the job would wait for ever."""
    if not workers:
        detail = "No worker is online just now: the job waits until one is that has what it needs."
        found.warnings.append(FieldError("no_worker_online", None, detail))
    elif not any(_suits(worker, wanted.gpus, wanted.gpu_memory_bytes) for worker in workers):
        enough = any(_suits(worker, wanted.gpus, None) for worker in workers)
        asked = f"{wanted.ranks} with {wanted.gpu_memory_gib:g} GiB each" if wanted.gpu_memory_gib else wanted.ranks
        more = f" and {len(workers) - _TOLD_WORKERS} more" if len(workers) > _TOLD_WORKERS else ""
        found.fault(
            "no_such_worker",
            "/resources/gpu_memory_gib" if enough else "/resources/gpus",
            f"No worker that is online can give {asked} to a job. They have: "
            f"{'; '.join(_told(worker) for worker in workers[:_TOLD_WORKERS])}{more}.",
        )


def _suits(worker: Worker, gpus: int, gpu_memory: int | None) -> bool:
    devices = Devices.of_worker(worker)
    cpus = worker.devices.get("cpus")
    # Ranks without an accelerator share the processors; more ranks than there are of them is nobody's intention.
    too_many = not devices.memory and isinstance(cpus, int) and gpus > cpus
    return devices.can_run(gpus, gpu_memory) and not too_many


def _told(worker: Worker) -> str:
    memory = Devices.of_worker(worker).memory
    if not memory:
        return f"{worker.host} no accelerator and {worker.devices.get('cpus', 'some')} processors"
    sizes = ", ".join(f"{size / 2**30:.3g}" for size in memory)
    return f"{worker.host} {len(memory)} accelerators for a job ({sizes} GiB)"


class _Models:
    def __init__(self, found: Checked, owner_id: str, services: Services, session: Session) -> None:
        self.found = found
        self.owner_id = owner_id
        self.settings = services.settings
        self.catalogue = services.models
        self.repository = ModelRepository(session)

    def check(self, spec: JobSpec) -> None:
        found = self.found
        for named in references(spec):
            if named.kind == "adapter":
                self._adapter(named)
            elif named.kind == "model":
                found.models[named.pointer] = self._causal_lm(named.name, named.revision, named.pointer)
        if found.teacher is not None and found.student is not None:
            self._pair(found.teacher, found.student)
        elif spec.student.prune_teacher is not None and found.teacher is not None:
            self._pruning(found.teacher, spec.student.prune_teacher.layers)
        self._context(spec)

    def _causal_lm(self, reference: str, revision: str | None, param: str) -> ModelDescription | None:
        """The model, or None: of the hub and not here, or not usable, which is noted as a fault."""
        if reference.startswith("hub:"):
            return self._on_the_hub(reference, revision, param)
        model = self._row(reference, param)
        if model is None:
            return None
        if model.kind == "adapter":
            self.found.fault("not_a_causal_lm", param, f"{reference} is an adapter: name it as teacher.adapter.")
            return None
        return self._usable(self._inspection(model), reference, param)

    def _on_the_hub(
        self, reference: str, revision: str | None, param: str, kind: Literal["base", "adapter"] = "base"
    ) -> ModelDescription | None:
        if not self.settings.hub_enabled:
            self.found.fault(
                "hub_disabled", param, "This service takes no hub models (MINILLM_HUB_ENABLED): name one of /v1/models."
            )
            return None
        found = self.catalogue.inspect_hub(reference.removeprefix("hub:"), revision, kind)
        return None if found is None else self._usable(found, f"{reference}, as it was last downloaded,", param)

    def _usable(self, found: Inspection, named: str, param: str) -> ModelDescription | None:
        if found.problems:
            self.found.fault(found.problems[0].code, param, f"{named} cannot be used: {found.told}.")
            return None
        return found.description

    def _inspection(self, model: Model) -> Inspection:
        """What is wrong with a folder is in its row, which was brought up to date before; a student's has none."""
        if model.kind == "student":
            found = self.catalogue.inspect_row(model)
            problems = found.problems
        else:
            problems = tuple(FolderProblem(**problem) for problem in model.problems or [])
        columns = {name: getattr(model, name) for name in ModelDescription().columns()}
        return Inspection(ModelDescription(**columns), problems)

    def _row(self, reference: str, param: str) -> Model | None:
        name = reference.removeprefix("path:")
        if reference.startswith("path:") and not FOLDER_NAME.fullmatch(name):
            self.found.fault(
                "model_not_found", param, "path: is followed by the name of one folder right under the models root."
            )
            return None
        try:
            return self.repository.get(self.owner_id, reference)
        except NotFound:
            self.found.fault("model_not_found", param, f"There is no model {reference}; GET /v1/models lists them.")
            return None

    def _adapter(self, named: Reference) -> None:
        reference, param = named.name, named.pointer
        if reference.startswith("hub:"):
            self._on_the_hub(reference, None, param, "adapter")
            return
        if not reference.startswith("path:"):
            self.found.fault("model_not_found", param, "An adapter is named path:<folder> or hub:<id>.")
            return
        model = self._row(reference, param)
        if model is None:
            return
        if model.kind != "adapter":
            self.found.fault("adapter_invalid", param, f"{reference} is a model and not an adapter.")
            return
        self._usable(self._inspection(model), reference, param)

    def _pair(self, teacher: ModelDescription, student: ModelDescription) -> None:
        param = "/student/model"
        if student.parameters > teacher.parameters:
            self.found.fault(
                "student_larger_than_teacher",
                param,
                f"The student has {student.parameters:,} parameters, more than the teacher's {teacher.parameters:,}.",
            )
        if same_tokenizer(teacher.tokenizer_fingerprint, student.tokenizer_fingerprint) is False:
            self.found.fault(
                "tokenizer_mismatch",
                param,
                "Teacher and student have different tokenizers: a student learns from a teacher that gives the same "
                "text the same ids. Choose a student of the teacher's family, or prune_teacher.",
            )

    def _pruning(self, teacher: ModelDescription, layers: int | list[int]) -> None:
        param = "/student/prune_teacher/layers"
        if isinstance(layers, list):
            if layers[-1] >= teacher.layers:
                self.found.fault(
                    "too_many_layers",
                    param,
                    f"There is no layer {layers[-1]}: the teacher's are 0 to {teacher.layers - 1}.",
                )
        elif layers > teacher.layers:
            self.found.fault(
                "too_many_layers", param, f"{layers} layers are asked for and the teacher has {teacher.layers}."
            )

    def _context(self, spec: JobSpec) -> None:
        wanted = spec.training.max_prompt_tokens + spec.training.max_new_tokens
        contexts = [
            (model.context_length, whose)
            for model, whose in ((self.found.teacher, "teacher"), (self.found.student, "student"))
            if model is not None and model.context_length is not None
        ]
        if contexts and wanted > min(contexts)[0]:
            context, whose = min(contexts)
            self.found.fault(
                "context_too_short",
                "/training/max_new_tokens",
                f"max_prompt_tokens ({spec.training.max_prompt_tokens}) and max_new_tokens "
                f"({spec.training.max_new_tokens}) are {wanted} together; the {whose}'s context is {context}.",
            )


class _Files:
    def __init__(self, found: Checked, owner_id: str, services: Services, session: Session) -> None:
        self.found = found
        self.owner_id = owner_id
        self.blobs = services.blobs
        self.repository = FileRepository(session)

    def check(self, spec: JobSpec) -> None:
        for named in references(spec):
            if named.kind != "file":
                continue
            rows = self._file(named.name, named.purpose, named.pointer)
            if rows is None:
                continue
            self.found.rows[named.pointer] = rows
            if named.purpose == "dataset" and rows < _FEWEST_ROWS:
                self.found.fault(
                    "dataset_invalid",
                    named.pointer,
                    "The dataset has one row; at least two are needed, one to train on and one to choose the student.",
                )

    def _file(self, reference: str, purpose: str, param: str) -> int | None:
        """Rows of the file, or None where it cannot be used, which is noted as a fault."""
        if reference.startswith("path:"):
            self.found.fault(
                "invalid_value", param, "Files of the server are not read over HTTP: upload it to /v1/files first."
            )
            return None
        try:
            file = self.repository.get(self.owner_id, reference)
        except NotFound:
            self.found.fault("file_not_found", param, f"There is no file {reference}.")
            return None
        try:
            return self._rows(file, purpose)
        except BadRows as error:
            self.found.line = error.line
            self.found.fault("dataset_invalid", param, f"{file.filename}: {error}")
        except FileNotFoundError:
            self.found.fault("file_not_found", param, f"The bytes of {reference} are no longer on this machine.")
        return None

    def _rows(self, file: File, purpose: str) -> int:
        # An upload is checked for its own purpose; only one used for another is read again.
        as_checked = file.purpose in _DATASET_PURPOSES if purpose == "dataset" else file.purpose == purpose
        if as_checked and file.lines is not None:
            return file.lines
        with self.blobs.open(file.id) as stream:
            return check_file(stream, purpose=purpose)
