"""The whole job, as a user asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from minillm_core.spec.base import Metadata, Strict, Whole
from minillm_core.spec.evaluation import EvaluationSpec, ExportSpec
from minillm_core.spec.methods import GKD, SFT, Method, MiniLLM, SeqKD
from minillm_core.spec.models import CorpusSpec, DatasetSpec, StudentSpec, TeacherSpec
from minillm_core.spec.training import GuardSpec, ResourceSpec, SchedulingSpec, TrainingSpec


class JobSpec(Strict):
    """One distillation job, as a user asks for it."""

    kind: Literal["distillation"] = "distillation"
    """What the job does; each kind has a spec of its own."""
    name: str | None = Field(None, max_length=200)
    seed: Annotated[int, Whole(0, 2**32 - 1)] = 0
    """What every generator of random numbers that the trainer uses takes: 32 bits."""
    metadata: Metadata = Field(default_factory=dict)
    """At most 16 pairs, names up to 64 characters, values up to 512."""
    teacher: TeacherSpec
    student: StudentSpec
    dataset: DatasetSpec
    pretrain_corpus: CorpusSpec | None = None
    method: Method
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    guards: GuardSpec = Field(default_factory=GuardSpec)
    resources: ResourceSpec = Field(default_factory=ResourceSpec)
    scheduling: SchedulingSpec = Field(default_factory=SchedulingSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    export: ExportSpec = Field(default_factory=ExportSpec)

    @model_validator(mode="after")
    def _geometry(self) -> JobSpec:
        rows = self.training.rows_per_step
        rollouts: int | None = None
        if isinstance(self.method, MiniLLM):
            rollouts = self.method.resolved().rollouts_per_round
        elif isinstance(self.method, GKD):
            rollouts = self.method.rollouts_per_round
        if rollouts is not None and rollouts % rows:
            raise ValueError(
                f"method.rollouts_per_round ({rollouts}) must be a multiple of training.rows_per_step ({rows})"
            )
        trains_on_corpus = isinstance(self.method, MiniLLM) and self.method.resolved().lm_coef > 0
        if self.pretrain_corpus is not None and not trains_on_corpus:
            raise ValueError(
                "pretrain_corpus.file would not be used: only the method minillm with an lm_coef above 0 trains on it"
            )
        if isinstance(self.method, SFT) and self.training.student_sft is not None:
            # The method is itself the fine-tuning: a phase of the same before it would be it twice.
            self.training.student_sft = None
        if isinstance(self.method, SeqKD) and "student_sft" not in self.training.model_fields_set:
            # The phase trains on the dataset's responses, which this method leaves aside.
            self.training.student_sft = None
        return self


SPECS: Mapping[str, type[JobSpec]] = {"distillation": JobSpec}
"""The spec of each kind of job. One that names no kind is the first."""


def parse_spec(document: Any) -> JobSpec:
    """The spec of its kind. Raises pydantic.ValidationError, which says of an unknown kind which there are."""
    kind = document.get("kind") if isinstance(document, dict) else None
    return SPECS.get(kind if isinstance(kind, str) else "", JobSpec).model_validate(document)
