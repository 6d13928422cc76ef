"""What can be known of a job before it runs, without torch: its models, whether they fit, its files.

Every fault that can be found is reported at once. Models of the hub are not on this machine yet, so
what depends on them is left to the trainer, which checks it again in any case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.orm import Session

from api.http.problems import FieldError, Invalid
from api.models.safety import code_fields
from api.services import Services
from minillm_core.spec import JobSpec
from minillm_core.spec.rows import BadRows, check_file
from store.db.errors import NotFound
from store.db.tables import File, Model
from store.files import FileRepository
from store.models import ModelRepository

# One folder right under the models root: no separators, nothing hidden, nothing that a shell or a URL reads otherwise.
_FOLDER_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f]{1,255}")
_DATASET_PURPOSES = ("dataset", "fine-tune")
_FEWEST_ROWS = 2


@dataclass
class Checked:
    """What the references of a spec lead to; None for models of the hub."""

    teacher: Model | None = None
    student: Model | None = None
    dataset_rows: int = 0
    faults: list[FieldError] = field(default_factory=list)
    line: int | None = None

    def fault(self, code: str, param: str, detail: str) -> None:
        self.faults.append(FieldError(code, param, detail))


def check(spec: JobSpec, *, owner_id: str, services: Services, session: Session) -> Checked:
    """Raise Invalid with every fault of the spec, or return what it names."""
    found = Checked()
    _Models(found, owner_id, services, session).check(spec)
    _Files(found, owner_id, services, session).check(spec)
    if found.faults:
        first = found.faults[0]
        more = f" ({len(found.faults) - 1} more in errors)" if len(found.faults) > 1 else ""
        extensions = {"line": found.line} if found.line is not None else None
        raise Invalid(
            f"{first.detail}{more}", code=first.code, param=first.param, errors=found.faults, extensions=extensions
        )
    return found


class _Models:
    def __init__(self, found: Checked, owner_id: str, services: Services, session: Session) -> None:
        self.found = found
        self.owner_id = owner_id
        self.settings = services.settings
        self.repository = ModelRepository(session)

    def check(self, spec: JobSpec) -> None:
        found = self.found
        found.teacher = self._causal_lm(spec.teacher.model, "/teacher/model")
        if spec.teacher.adapter is not None:
            self._adapter(spec.teacher.adapter)
        if spec.student.model is not None:
            found.student = self._causal_lm(spec.student.model, "/student/model")
            if found.teacher is not None and found.student is not None:
                self._pair(found.teacher, found.student)
        elif spec.student.prune_teacher is not None and found.teacher is not None:
            self._pruning(found.teacher, spec.student.prune_teacher.layers)
        self._context(spec)

    def _causal_lm(self, reference: str, param: str) -> Model | None:
        """The registered model, or None: of the hub, or not usable, which is noted as a fault."""
        if reference.startswith("hub:"):
            self._hub(param)
            return None
        model = self._registered(reference, param)
        if model is None:
            return None
        if not model.causal_lm:
            what = model.architecture or "a model that names no architecture"
            self.found.fault("not_a_causal_lm", param, f"{reference} is {what}, not a causal language model.")
            return None
        if not self._safe(self._folder(model), reference, param):
            return None
        return model

    def _hub(self, param: str) -> None:
        if not self.settings.hub_enabled:
            self.found.fault(
                "hub_disabled", param, "This service takes no hub models (MINILLM_HUB_ENABLED): name one of /v1/models."
            )

    def _registered(self, reference: str, param: str) -> Model | None:
        name = reference.removeprefix("path:")
        if reference.startswith("path:") and not _FOLDER_NAME.fullmatch(name):
            self.found.fault(
                "model_not_found", param, "path: is followed by the name of one folder right under the models root."
            )
            return None
        try:
            return self.repository.get(self.owner_id, reference)
        except NotFound:
            self.found.fault("model_not_found", param, f"There is no model {reference}; GET /v1/models lists them.")
            return None

    def _folder(self, model: Model) -> Path:
        root = self.settings.models_dir if model.kind == "base" else self.settings.data_dir
        return root / model.path

    def _safe(self, folder: Path, reference: str, param: str) -> bool:
        if unsafe := code_fields(folder):
            self.found.fault(
                "unsupported_model",
                param,
                f"{reference} would load code or cannot be read ({', '.join(unsafe)}); such models are refused.",
            )
            return False
        return True

    def _adapter(self, reference: str) -> None:
        """An adapter is a folder with adapter_config.json; it is not a model, so the registry does not have it."""
        param = "/teacher/adapter"
        if reference.startswith("hub:"):
            self._hub(param)
            return
        if not reference.startswith("path:"):
            self.found.fault("model_not_found", param, "An adapter is named path:<folder> or hub:<id>.")
            return
        name = reference.removeprefix("path:")
        folder = self.settings.models_dir / name
        if (
            not _FOLDER_NAME.fullmatch(name)
            or folder.is_symlink()
            or not (folder / "adapter_config.json").is_file()
            or not (folder / "adapter_model.safetensors").is_file()
        ):
            self.found.fault(
                "model_not_found",
                param,
                f"{reference} is no folder right under the models root with adapter_config.json and "
                "adapter_model.safetensors.",
            )
            return
        self._safe(folder, reference, param)

    def _pair(self, teacher: Model, student: Model) -> None:
        param = "/student/model"
        if student.parameters > teacher.parameters:
            self.found.fault(
                "student_larger_than_teacher",
                param,
                f"The student has {student.parameters:,} parameters, more than the teacher's {teacher.parameters:,}.",
            )
        if None not in (teacher.tokenizer_fingerprint, student.tokenizer_fingerprint) and (
            teacher.tokenizer_fingerprint != student.tokenizer_fingerprint
        ):
            self.found.fault(
                "tokenizer_mismatch",
                param,
                "Teacher and student have different tokenizers: a student learns from a teacher that gives the same "
                "text the same ids. Choose a student of the teacher's family, or prune_teacher.",
            )

    def _pruning(self, teacher: Model, layers: int | list[int]) -> None:
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
        rows = self._file(spec.dataset.file, "dataset", "/dataset/file")
        if rows is not None:
            self.found.dataset_rows = rows
            if rows < _FEWEST_ROWS:
                self.found.fault(
                    "dataset_invalid",
                    "/dataset/file",
                    "The dataset has one row; at least two are needed, one to train on and one to choose the student.",
                )
        if spec.pretrain_corpus is not None:
            self._file(spec.pretrain_corpus.file, "corpus", "/pretrain_corpus/file")
        if spec.evaluation.calibration_file is not None:
            self._file(spec.evaluation.calibration_file, "calibration", "/evaluation/calibration_file")

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
