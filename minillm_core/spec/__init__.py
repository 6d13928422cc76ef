"""The job contract: what a user asks for, what the trainer reports, and how a run ends.

This package is the only part of ``minillm_core`` that the other rooms import, so it imports
neither torch nor transformers nor deepspeed. Everything here is data: a :class:`JobSpec` travels
from the HTTP request to ``RUN_DIR/spec.json``, a :class:`RunContext` tells the trainer where the
named files and models lie on this machine, and the trainer answers with :data:`TrainerEvent`
lines in ``RUN_DIR/events.jsonl`` and one of :class:`ExitCode`.

Notation: one *row* is one prompt with its response, one *rollout* is one row whose response was
sampled, one *step* is one optimizer step over ``rows_per_step`` rows of all ranks together. No
count in this package is per device.
"""

from minillm_core.spec.base import (
    MAX_RUNTIME_SECONDS,
    Divergence,
    DType,
    FileReference,
    Metadata,
    ModelReference,
    Whole,
)
from minillm_core.spec.evaluation import (
    DEFAULT_METRICS,
    EvaluationSpec,
    ExportFormat,
    ExportSpec,
    MetricName,
)
from minillm_core.spec.events import (
    CheckpointEvent,
    CheckpointRemovedEvent,
    ExitCode,
    Failure,
    FailureCategory,
    FailureEvent,
    MessageEvent,
    MetricsEvent,
    Phase,
    PhaseEvent,
    ProgressEvent,
    StudentEvent,
    TrainerEvent,
    parse_event,
)
from minillm_core.spec.job import SPECS, JobSpec, parse_spec
from minillm_core.spec.methods import (
    GKD,
    KD,
    RECIPES,
    SFT,
    Method,
    MiniLLM,
    ResolvedMiniLLM,
    SeqKD,
)
from minillm_core.spec.models import (
    CorpusSpec,
    DatasetSpec,
    LoraSpec,
    PruneTeacher,
    StudentSpec,
    TeacherSpec,
)
from minillm_core.spec.run_folder import (
    CHECKPOINTS_DIR,
    CONTEXT_FILE,
    EVENTS_FILE,
    MANIFEST_FILE,
    PINNED_FILE,
    REPORT_FILE,
    SPEC_FILE,
    STUDENT_DIR,
    Manifest,
    ManifestFile,
    RunContext,
    load_run,
)
from minillm_core.spec.training import (
    GuardSpec,
    ResourceSpec,
    SchedulingSpec,
    SftPhase,
    TrainingSpec,
)

__all__ = [
    "CHECKPOINTS_DIR",
    "CONTEXT_FILE",
    "DEFAULT_METRICS",
    "EVENTS_FILE",
    "GKD",
    "KD",
    "MANIFEST_FILE",
    "MAX_RUNTIME_SECONDS",
    "PINNED_FILE",
    "RECIPES",
    "REPORT_FILE",
    "SFT",
    "SPECS",
    "SPEC_FILE",
    "STUDENT_DIR",
    "CheckpointEvent",
    "CheckpointRemovedEvent",
    "CorpusSpec",
    "DType",
    "DatasetSpec",
    "Divergence",
    "EvaluationSpec",
    "ExitCode",
    "ExportFormat",
    "ExportSpec",
    "Failure",
    "FailureCategory",
    "FailureEvent",
    "FileReference",
    "GuardSpec",
    "JobSpec",
    "LoraSpec",
    "Manifest",
    "ManifestFile",
    "MessageEvent",
    "Metadata",
    "Method",
    "MetricName",
    "MetricsEvent",
    "MiniLLM",
    "ModelReference",
    "Phase",
    "PhaseEvent",
    "ProgressEvent",
    "PruneTeacher",
    "ResolvedMiniLLM",
    "ResourceSpec",
    "RunContext",
    "SchedulingSpec",
    "SeqKD",
    "SftPhase",
    "StudentEvent",
    "StudentSpec",
    "TeacherSpec",
    "TrainerEvent",
    "TrainingSpec",
    "Whole",
    "load_run",
    "parse_event",
    "parse_spec",
]
