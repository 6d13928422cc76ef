"""The job contract: what a user asks for, what the trainer reports, and how a run ends.

This module is the only part of ``minillm_core`` that the other rooms import, so it imports
neither torch nor transformers nor deepspeed. Everything here is data: a :class:`JobSpec` travels
from the HTTP request to ``RUN_DIR/spec.json``, a :class:`RunContext` tells the trainer where the
named files and models lie on this machine, and the trainer answers with :data:`TrainerEvent`
lines in ``RUN_DIR/events.jsonl`` and one of :class:`ExitCode`.

Notation: one *row* is one prompt with its response, one *rollout* is one row whose response was
sampled, one *step* is one optimizer step over ``rows_per_step`` rows of all ranks together. No
count in this module is per device.
"""

from __future__ import annotations

import enum
import itertools
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    field_validator,
    model_validator,
)

SPEC_FILE = "spec.json"
CONTEXT_FILE = "run.json"
EVENTS_FILE = "events.jsonl"
CHECKPOINTS_DIR = "checkpoints"
STUDENT_DIR = "student"
MANIFEST_FILE = "manifest.json"

_MODEL_REFERENCE = re.compile(r"^(hub:[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?|path:[^\x00-\x1f]+|model_[A-Za-z0-9]+)$")
_FILE_REFERENCE = re.compile(r"^(file_[A-Za-z0-9]+|path:[^\x00-\x1f]+)$")


def _check_model_reference(value: str) -> str:
    if not _MODEL_REFERENCE.match(value):
        raise ValueError(
            "a model is named hub:<id>, path:<folder under the models root> or model_<id of a student made here>"
        )
    return value


def _check_file_reference(value: str) -> str:
    if not _FILE_REFERENCE.match(value):
        raise ValueError("a dataset is named by the id of an uploaded file: file_...")
    return value


ModelReference = Annotated[str, AfterValidator(_check_model_reference)]
FileReference = Annotated[str, AfterValidator(_check_file_reference)]
DType = Literal["float32", "bfloat16", "float16"]
Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "adaptive_kl", "tvd"]


class _Strict(BaseModel):
    """Refuses unknown fields, so that a misspelt setting is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


# ---------------------------------------------------------------------------------------------
# models and data
# ---------------------------------------------------------------------------------------------


class TeacherSpec(_Strict):
    model: ModelReference
    """`hub:<id>`, `path:<folder under the models root>` or `model_...`."""
    revision: str | None = Field(None, max_length=200)
    """Branch, tag or commit of a hub model."""
    dtype: DType | None = None
    """Number format the frozen teacher is held in; the training dtype when left out."""
    adapter: ModelReference | None = None
    """A LoRA adapter merged into the teacher before use."""


class PruneTeacher(_Strict):
    """The student is the teacher with some of its layers: no second pretrained model is needed."""

    layers: int | list[int]
    """How many layers to keep, evenly spread with the first and last among them, or which ones."""

    @field_validator("layers")
    @classmethod
    def _sensible(cls, value: int | list[int]) -> int | list[int]:
        if isinstance(value, int):
            if value < 1:
                raise ValueError("at least one layer must be kept")
        elif not value:
            raise ValueError("at least one layer must be kept")
        elif any(layer < 0 for layer in value) or any(b <= a for a, b in itertools.pairwise(value)):
            raise ValueError("layer numbers must be non-negative and rise")
        return value

    @property
    def count(self) -> int:
        return self.layers if isinstance(self.layers, int) else len(self.layers)


class LoraSpec(_Strict):
    """A low-rank adapter on the student; merged into its weights on export."""

    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | None = None
    """Names of the linear layers to adapt; every linear layer but the head when left out."""


class StudentSpec(_Strict):
    """Exactly one of ``model`` and ``prune_teacher``."""

    model: ModelReference | None = None
    revision: str | None = Field(None, max_length=200)
    prune_teacher: PruneTeacher | None = None
    lora: LoraSpec | None = None

    @model_validator(mode="after")
    def _one_source(self) -> StudentSpec:
        if (self.model is None) == (self.prune_teacher is None):
            raise ValueError("give exactly one of model and prune_teacher")
        if self.prune_teacher is not None and self.revision is not None:
            raise ValueError("revision belongs to a hub model, not to a pruned teacher")
        return self


class DatasetSpec(_Strict):
    """JSONL, one object a line, in one of the accepted shapes (see docs/datasets.md)."""

    file: FileReference
    template: Literal["chat", "alpaca", "plain"] = "chat"
    """`chat` renders the tokenizer's own chat template; `alpaca` a fixed instruction layout; `plain` the bare text."""
    dev_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the rows held out to choose the student; at least one row."""
    max_dev_rows: int = Field(1000, ge=1)


class CorpusSpec(_Strict):
    """Plain text for the pre-training loss: JSONL rows with `text`, or a text file."""

    file: FileReference


# ---------------------------------------------------------------------------------------------
# methods
# ---------------------------------------------------------------------------------------------


class _Sampling(_Strict):
    temperature: float = Field(1.0, gt=0, le=10)
    """Divides the logits of teacher and student alike, in sampling and in every log-probability."""
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _full_support(self) -> _Sampling:
        if self.top_k != 0 or self.top_p != 1.0:
            raise ValueError(
                "top_k and top_p must stay off (0 and 1.0) while training: a token that one model's filter removes "
                "has probability zero there, so the importance weight and the reverse KL are undefined"
            )
        return self


class SFT(_Strict):
    """Cross-entropy on the dataset's own responses (the baseline `SFT w/o KD`)."""

    type: Literal["sft"]


class KD(_Strict):
    """Word-level distillation on the dataset's responses: (1-k) cross-entropy + k divergence."""

    type: Literal["kd"]
    kd_ratio: float = Field(0.5, ge=0, le=1)
    divergence: Divergence = "forward_kl"
    temperature: float = Field(1.0, gt=0, le=10)
    jsd_beta: float = Field(0.5, gt=0, lt=1)
    skew_alpha: float = Field(0.1, gt=0, lt=1)


class SeqKD(_Sampling):
    """Cross-entropy on responses sampled from the teacher, never on the dataset's own (Kim & Rush 2016)."""

    type: Literal["seqkd"]
    kd_ratio: float = Field(0.0, ge=0, le=1)
    """Share of the word-level forward KL; 0 is the paper's SeqKD, 0.5 the reference script's."""


class GKD(_Sampling):
    """A divergence on a mixture of the student's own responses and the dataset's (Agarwal et al. 2024)."""

    type: Literal["gkd"]
    on_policy_fraction: float = Field(1.0, ge=0, le=1)
    divergence: Divergence = "jsd"
    jsd_beta: float = Field(0.5, gt=0, lt=1)
    skew_alpha: float = Field(0.1, gt=0, lt=1)
    rollouts_per_round: int | None = Field(None, ge=1)
    """Responses sampled before each set of steps; `rows_per_step` when left out."""


class MiniLLM(_Sampling):
    """Reverse KL minimised on-policy by policy gradient (arXiv 2306.08543).

    Settings left out take the value of the recipe: see :data:`RECIPES` and docs/algorithm.md.
    """

    type: Literal["minillm"]
    recipe: Literal["default", "paper", "reference"] = "default"
    teacher_mix_alpha: float | None = Field(None, ge=0, lt=1)
    """Share of the teacher in the sampling distribution (paper section 2.2, teacher-mixed sampling)."""
    rollouts_per_round: int | None = Field(None, ge=1)
    inner_epochs: int | None = Field(None, ge=1, le=64)
    cliprange: float | None = Field(None, gt=0, lt=1)
    clip: bool | None = None
    """Whether the surrogate is clipped at `1 +- cliprange`."""
    reward_scale: float | None = Field(None, gt=0)
    reward_clip: float | None = Field(None, gt=0)
    reward_start: Literal["next", "current"] | None = None
    gamma: float | None = Field(None, ge=0, le=1)
    length_norm: bool | None = None
    whitening: Literal["off", "masked", "padded"] | None = None
    long_part: bool | None = None
    """Whether the policy-gradient part is in the loss; off leaves the single-step part alone."""
    single_step: bool | None = None
    """Whether the exact single-step part is in the loss (paper equation 4)."""
    single_step_weighted: bool | None = None
    """Whether the single-step part carries the importance weight, as in the paper's equation 7."""
    lm_coef: float | None = Field(None, ge=0)
    kd_ratio: float | None = Field(None, ge=0, le=1)
    """Share of forward KL to the teacher within the pre-training loss."""

    def resolved(self) -> ResolvedMiniLLM:
        """The recipe's values with this method's own on top; nothing is left open."""
        given = self.model_dump(exclude_none=True, exclude={"type", "recipe"})
        return ResolvedMiniLLM(recipe=self.recipe, **{**RECIPES[self.recipe], **given})


class ResolvedMiniLLM(_Strict):
    """A :class:`MiniLLM` with every setting decided."""

    recipe: str
    temperature: float
    top_k: int
    top_p: float
    teacher_mix_alpha: float
    rollouts_per_round: int
    inner_epochs: int
    cliprange: float
    clip: bool
    reward_scale: float
    reward_clip: float | None
    reward_start: Literal["next", "current"]
    gamma: float
    length_norm: bool
    whitening: Literal["off", "masked", "padded"]
    long_part: bool
    single_step: bool
    single_step_weighted: bool
    lm_coef: float
    kd_ratio: float


_PAPER: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "teacher_mix_alpha": 0.2,
    "rollouts_per_round": 256,
    "inner_epochs": 4,
    "cliprange": 0.2,
    "clip": True,
    "reward_scale": 1.0,
    "reward_clip": None,
    "reward_start": "next",
    "gamma": 1.0,
    "length_norm": True,
    "whitening": "off",
    "long_part": True,
    "single_step": True,
    "single_step_weighted": True,
    "lm_coef": 1.0,
    "kd_ratio": 0.0,
}

RECIPES: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "default": {**_PAPER, "whitening": "masked"},
    "reference": {
        **_PAPER,
        "reward_scale": 0.5,
        "reward_clip": 100.0,
        "reward_start": "current",
        "gamma": 0.95,
        "whitening": "padded",
        "single_step_weighted": False,
        "kd_ratio": 0.5,
    },
}
"""What each recipe sets; the differences are those of the published code against the paper."""

Method = Annotated[SFT | KD | SeqKD | GKD | MiniLLM, Field(discriminator="type")]


# ---------------------------------------------------------------------------------------------
# training
# ---------------------------------------------------------------------------------------------


class SftPhase(_Strict):
    """Supervised fine-tuning before the method; the state of lowest validation loss is kept."""

    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; `epochs` decides when left out."""
    epochs: float = Field(3.0, gt=0)
    learning_rate: float = Field(5e-5, gt=0, lt=1)
    rows_per_step: int = Field(32, ge=1)
    eval_every: int | None = Field(None, ge=1)
    """Steps between validations; once an epoch when left out."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(1e-2, ge=0)


class TrainingSpec(_Strict):
    max_steps: int = Field(1000, ge=1, le=10_000_000)
    """Optimizer steps of the method itself."""
    rows_per_step: int = Field(64, ge=1)
    """Rows of one optimizer step, over all ranks."""
    learning_rate: float = Field(5e-6, gt=0, lt=1)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(1e-6, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = Field(1.0, gt=0)
    max_prompt_tokens: int = Field(256, ge=1)
    """Rows with a longer prompt are left out and counted."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest response, sampled or from the dataset (longer ones are cut)."""
    dtype: DType = "bfloat16"
    activation_checkpointing: bool = False
    micro_batch_tokens: int = Field(8192, ge=16)
    """Tokens of one forward pass of one rank, prompts and responses together; what memory allows."""
    decode_batch_rows: int = Field(64, ge=1)
    """Rows one rank decodes at the same time."""
    decode_dtype: DType | None = None
    """Number format of the weights while sampling; the training dtype when left out."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between dev evaluations; a tenth of `max_steps` when left out."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; a tenth of `max_steps` when left out."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept besides the best."""
    student_sft: SftPhase | None = SftPhase()
    """Starting point of the student; null starts from its weights as they are."""
    teacher_sft: SftPhase | None = None
    """Fine-tunes the teacher first; null uses it as it is."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("both betas must be at least 0 and below 1")
        return value

    @property
    def evaluation_interval(self) -> int:
        return self.eval_every or max(1, self.max_steps // 10)

    @property
    def checkpoint_interval(self) -> int:
        return self.save_every or max(1, self.max_steps // 10)


class GuardSpec(_Strict):
    """When a run is no longer worth its time: see docs/algorithm.md, Guards."""

    enabled: bool = True
    min_effective_sample_size: float = Field(0.05, ge=0, le=1)
    """Smallest (sum w)^2 / (n sum w^2) of the importance weights over a round."""
    max_length_drift: float = Field(4.0, gt=1)
    """Largest factor, up or down, between the mean response length and that of the first round."""
    max_repetition: float = Field(0.5, gt=0, le=1)
    """Largest rise in the share of repeated 4-grams within responses over the first round."""
    patience: int = Field(3, ge=1)
    """Rounds in a row past a limit before the run ends as `loss_diverged`."""


class ResourceSpec(_Strict):
    gpus: int = Field(1, ge=0, le=1024)
    """Ranks, one accelerator each; where the worker has none, as many ranks share the CPU (0 counts as 1)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    cpu_offload: bool = False
    """Keeps optimizer states (and, at stage 3, parameters) in main memory."""

    @property
    def ranks(self) -> int:
        return max(1, self.gpus)


class SchedulingSpec(_Strict):
    priority: int = Field(0, ge=-100, le=100)
    """Higher runs first."""
    max_runtime_seconds: int | None = Field(None, ge=1)
    """Wall-clock limit over all attempts, from the first start; the job then ends as `expired`."""
    max_attempts: int = Field(3, ge=1, le=100)


MetricName = Literal["rouge_l", "exposure_bias", "calibration", "diversity", "divergence", "lm_loss"]


class EvaluationSpec(_Strict):
    metrics: list[MetricName] = Field(default_factory=lambda: list(DEFAULT_METRICS))
    max_rows: int = Field(200, ge=1)
    """Dev rows used by the evaluation before and after."""
    seeds: list[int] = Field(default_factory=lambda: [10], min_length=1)
    """One sampled evaluation for each; the report gives their mean."""
    decoding: Literal["greedy", "sample"] = "sample"
    temperature: float = Field(1.0, gt=0, le=10)
    no_repeat_ngram_size: int = Field(0, ge=0)
    samples: int = Field(4, ge=0, le=100)
    """Prompts whose answers before and after are kept in the report."""
    calibration_file: FileReference | None = None
    """Rows `{"instruction", "answer"}`; the dataset's dev rows with short answers when left out."""

    @field_validator("metrics")
    @classmethod
    def _once(cls, value: list[MetricName]) -> list[MetricName]:
        if len(set(value)) != len(value):
            raise ValueError("a metric is named twice")
        return value


DEFAULT_METRICS: tuple[MetricName, ...] = ("rouge_l", "divergence")


ExportFormat = Literal["safetensors"]


class ExportSpec(_Strict):
    formats: list[ExportFormat] = Field(default=["safetensors"], min_length=1)
    dtype: DType | None = None
    """Number format of the exported weights; the training dtype when left out."""


class JobSpec(_Strict):
    """One distillation job, as a user asks for it."""

    name: str | None = Field(None, max_length=200)
    seed: int = Field(0, ge=0, lt=2**32)
    metadata: dict[str, str] = Field(default_factory=dict)
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

    @field_validator("metadata")
    @classmethod
    def _small(cls, value: dict[str, str]) -> dict[str, str]:
        check_metadata(value)
        return value

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
        if rows % self.resources.ranks:
            raise ValueError(
                f"training.rows_per_step ({rows}) must be a multiple of resources.gpus ({self.resources.ranks})"
            )
        if isinstance(self.method, SFT) and self.training.student_sft is not None:
            # The method is itself the fine-tuning: a phase of the same before it would be it twice.
            self.training.student_sft = None
        return self


def check_metadata(value: dict[str, str]) -> None:
    """Raise ValueError where metadata is over its limits: 16 pairs, 64 characters a name, 512 a value."""
    if len(value) > 16:
        raise ValueError("at most 16 pairs")
    for name, text in value.items():
        if not name or len(name) > 64:
            raise ValueError("names have 1 to 64 characters")
        if len(text) > 512:
            raise ValueError(f"the value of {name!r} has more than 512 characters")


# ---------------------------------------------------------------------------------------------
# the run folder
# ---------------------------------------------------------------------------------------------


class RunContext(_Strict):
    """Where on this machine the things lie that a :class:`JobSpec` names; ``RUN_DIR/run.json``.

    Without the file the trainer resolves ``path:`` against the current folder and the run folder,
    which is how it is run by hand.
    """

    job_id: str | None = None
    attempt: int = Field(1, ge=1)
    models: dict[str, str] = Field(default_factory=dict)
    """Model reference -> folder, for every `path:` and `model_` reference of the spec."""
    files: dict[str, str] = Field(default_factory=dict)
    """File reference -> path."""
    resume_from: list[str] = Field(default_factory=list)
    """Checkpoint folders of earlier attempts, newest first; the first that verifies is used."""
    hub_cache: str | None = None
    hub_offline: bool = False
    lifeline_fd: int | None = None
    """Read end of a pipe held by the supervisor; its end of file means that the supervisor is gone."""


def load_run(run_dir: Path) -> tuple[JobSpec, RunContext]:
    """Read ``spec.json`` and, when present, ``run.json``.

    Raises FileNotFoundError without a spec and pydantic.ValidationError where it is not valid.
    """
    spec = JobSpec.model_validate_json((run_dir / SPEC_FILE).read_text())
    context_path = run_dir / CONTEXT_FILE
    context = RunContext.model_validate_json(context_path.read_text()) if context_path.exists() else RunContext()
    return spec, context


# ---------------------------------------------------------------------------------------------
# what the trainer says
# ---------------------------------------------------------------------------------------------


class Phase(enum.StrEnum):
    """What a running attempt is doing."""

    VALIDATING = "validating"
    PREPARING = "preparing"
    TEACHER_SFT = "teacher_sft"
    STUDENT_SFT = "student_sft"
    GENERATING = "generating"
    TRAINING = "training"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"


class FailureCategory(enum.StrEnum):
    """Whose fault a failure is: only the last is retried on its own."""

    USER = "user"
    SYSTEM = "system"
    INFRASTRUCTURE = "infrastructure"


class Failure(_Strict):
    """Why an attempt or a job ended badly."""

    code: str
    """Stable snake_case name, such as `dataset_invalid`, `tokenizer_mismatch`, `out_of_memory`,
    `worker_lost`, `time_limit`, `loss_diverged`, `disk_full`, `model_unavailable`, `internal_error`."""
    category: FailureCategory
    message: str
    param: str | None = None
    """JSON pointer to the field of the spec at fault."""
    retryable: bool = False
    attempt: int | None = None


class ExitCode(enum.IntEnum):
    """How the trainer process ends (sysexits.h where it has a fitting number)."""

    DONE = 0
    USER_ERROR = 64
    INTERNAL_ERROR = 70
    STOPPED = 75


class _Event(_Strict):
    seq: int
    """1, 2, 3 ... within one attempt."""
    time: str
    """RFC 3339, UTC."""


class PhaseEvent(_Event):
    type: Literal["phase"] = "phase"
    phase: Phase
    message: str = ""


class ProgressEvent(_Event):
    """Where the run is; written at most about once a second."""

    type: Literal["progress"] = "progress"
    phase: Phase
    step: int
    total_steps: int
    fraction: float
    """Share of the whole job that is done, 0 to 1."""
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    """Estimate for the whole job."""


class MetricsEvent(_Event):
    """Measurements of one step; the names are listed in docs/metrics.md."""

    type: Literal["metrics"] = "metrics"
    phase: Phase
    step: int
    values: dict[str, float]


class CheckpointEvent(_Event):
    """A checkpoint that is complete on disk: manifest written, folder renamed."""

    type: Literal["checkpoint"] = "checkpoint"
    phase: Phase
    step: int
    path: str
    """Folder, relative to RUN_DIR."""
    bytes: int
    manifest_sha256: str
    best: bool = False
    """Whether it is the best so far by the criterion of its phase."""
    resumable: bool = True
    metrics: dict[str, float] = Field(default_factory=dict)


class CheckpointRemovedEvent(_Event):
    type: Literal["checkpoint_removed"] = "checkpoint_removed"
    path: str


class MessageEvent(_Event):
    type: Literal["message"] = "message"
    level: Literal["info", "warning", "error"] = "info"
    code: str
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


class StudentEvent(_Event):
    """The student is exported and its manifest verified: the last event of a run that succeeds."""

    type: Literal["student"] = "student"
    path: str
    """Folder, relative to RUN_DIR."""
    manifest_sha256: str
    bytes: int
    parameters: int
    teacher_parameters: int
    report: dict[str, Any]
    """The evaluation before and after: docs/evaluation.md."""


class FailureEvent(_Event):
    type: Literal["failure"] = "failure"
    failure: Failure


TrainerEvent = Annotated[
    PhaseEvent
    | ProgressEvent
    | MetricsEvent
    | CheckpointEvent
    | CheckpointRemovedEvent
    | MessageEvent
    | StudentEvent
    | FailureEvent,
    Field(discriminator="type"),
]
_EVENT: TypeAdapter[TrainerEvent] = TypeAdapter(TrainerEvent)


def parse_event(line: str | bytes) -> TrainerEvent:
    """One line of ``events.jsonl``. Raises pydantic.ValidationError when it is none."""
    return _EVENT.validate_json(line)


class ManifestFile(_Strict):
    name: str
    """Path relative to the folder, with forward slashes."""
    bytes: int
    sha256: str


class Manifest(_Strict):
    """What a checkpoint or an exported student consists of; written last, named in the event."""

    kind: Literal["checkpoint", "student"]
    created_at: str
    files: list[ManifestFile]
    data: dict[str, Any] = Field(default_factory=dict)

    def dumps(self) -> bytes:
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()
