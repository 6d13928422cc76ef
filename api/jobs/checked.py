"""What the checks of a new job have found, and for a moment remember."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

from api.http.problems import FieldError
from minillm_core.spec import JobSpec
from minillm_core.spec.model_folder import ModelDescription


@dataclass
class Checked:
    """What the references of a spec lead to; None for a model of the hub that is not on this machine."""

    models: dict[str, ModelDescription | None] = field(default_factory=dict)
    """By the pointer to the field that names it."""
    rows: dict[str, int] = field(default_factory=dict)
    """Of each file, likewise."""
    faults: list[FieldError] = field(default_factory=list)
    line: int | None = None
    warnings: list[FieldError] = field(default_factory=list)
    """What does not keep the job from being made, and may keep it from running."""

    @property
    def teacher(self) -> ModelDescription | None:
        return self.models.get("/teacher/model")

    @property
    def student(self) -> ModelDescription | None:
        return self.models.get("/student/model")

    @property
    def dataset_rows(self) -> int:
        return self.rows.get("/dataset/file", 0)

    def fault(self, code: str, param: str, detail: str) -> None:
        self.faults.append(FieldError(code, param, detail))


class RecentChecks:
    """What models and files were found to be a moment ago, for who submits the same job many times.

    Nothing that is found no more is accepted by it: making the job looks at every row again, under lock, and a folder
    that has changed is another generation of the models.
    """

    _SECONDS = 2.0
    _MOST = 256
    # What no check reads, and what differs where the same is trained several times.
    _EXCEPT: ClassVar[set[str]] = {"name", "metadata", "seed", "scheduling"}

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int, str], tuple[float, Checked]] = {}

    def key(self, spec: JobSpec, owner_id: str, generation: int) -> tuple[str, int, str]:
        return owner_id, generation, spec.model_dump_json(exclude=self._EXCEPT)

    def get(self, key: tuple[str, int, str]) -> Checked | None:
        at, found = self._kept.get(key, (0.0, None))
        return found if found is not None and time.monotonic() - at < self._SECONDS else None

    def keep(self, key: tuple[str, int, str], found: Checked) -> None:
        if len(self._kept) >= self._MOST:
            self._kept = {}
        self._kept[key] = (time.monotonic(), found)
