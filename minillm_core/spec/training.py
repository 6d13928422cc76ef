"""How long, how fast and on what a job trains, and when it gives up."""

from __future__ import annotations

from typing import Annotated, Literal

from minillm_core.spec.base import MAX_RUNTIME_SECONDS, DType, Flag, Real, Rows, Steps, Strict, Whole

_Warmup = Annotated[int, Whole(0, 10_000_000)]
_LearningRate = Annotated[float, Real(gt=0, lt=1)]
_WeightDecay = Annotated[float, Real(ge=0, le=10)]
_Beta = Annotated[float, Real(ge=0, lt=1)]
_RowTokens = Annotated[int, Whole(1, 1 << 20)]
"""Tokens of one prompt or response: beyond the context of any model."""


class SftPhase(Strict):
    """Supervised fine-tuning before the method; the state of lowest validation loss is kept."""

    max_steps: Steps | None = None
    """Optimizer steps; `epochs` decides when left out."""
    epochs: Annotated[float, Real(gt=0, le=10_000)] = 3.0
    learning_rate: _LearningRate = 5e-5
    rows_per_step: Rows = 32
    eval_every: Steps | None = None
    """Steps between validations; once an epoch when left out."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: _Warmup = 0
    weight_decay: _WeightDecay = 1e-2


class TrainingSpec(Strict):
    max_steps: Steps = 1000
    """Optimizer steps of the method itself."""
    rows_per_step: Rows = 64
    """Rows of one optimizer step, over all ranks."""
    learning_rate: _LearningRate = 5e-6
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: _Warmup = 0
    weight_decay: _WeightDecay = 1e-6
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    grad_clip: Annotated[float, Real(gt=0, le=1e9)] = 1.0
    max_prompt_tokens: _RowTokens = 256
    """Rows with a longer prompt are left out and counted."""
    max_new_tokens: _RowTokens = 256
    """Longest response, sampled or from the dataset (longer ones are cut)."""
    dtype: DType = "bfloat16"
    activation_checkpointing: Flag = False
    micro_batch_tokens: Annotated[int, Whole(16, 1 << 24)] = 8192
    """Tokens of one forward pass of one rank, prompts and responses together; what memory allows."""
    decode_batch_rows: Annotated[int, Whole(1, 1 << 16)] = 64
    """Rows one rank decodes at the same time."""
    decode_dtype: DType | None = None
    """Number format of the weights while sampling; the training dtype when left out."""
    eval_every: Steps | None = None
    """Steps between dev evaluations; a tenth of `max_steps` when left out."""
    save_every: Steps | None = None
    """Steps between checkpoints; a tenth of `max_steps` when left out."""
    selection: Literal["auto", "rouge_l", "exact_match", "loss"] = "auto"
    """What chooses the student among the dev evaluations: the highest score of its answers or the lowest validation
    loss. `auto` is `rouge_l`, or `loss` where no reference has a word that ROUGE-L could count."""
    keep_checkpoints: Annotated[int, Whole(1, 1000)] = 2
    """Newest checkpoints kept besides the best."""
    student_sft: SftPhase | None = SftPhase()
    """Starting point of the student; null starts from its weights as they are, and so do `sft` and, unless it is
    given, `seqkd`."""
    teacher_sft: SftPhase | None = None
    """Fine-tunes the teacher first; null uses it as it is."""

    @property
    def evaluation_interval(self) -> int:
        return self.eval_every or max(1, self.max_steps // 10)

    @property
    def checkpoint_interval(self) -> int:
        return self.save_every or max(1, self.max_steps // 10)


class GuardSpec(Strict):
    """When a run is no longer worth its time: see docs/algorithm.md, Guards."""

    enabled: Flag = True
    min_effective_sample_size: Annotated[float, Real(ge=0, le=1)] = 0.05
    """Smallest (sum w)^2 / (n sum w^2) of the importance weights over a round."""
    max_length_drift: Annotated[float, Real(gt=1, le=1e6)] = 4.0
    """Largest factor, up or down, between the mean response length and that of the first round."""
    max_repetition: Annotated[float, Real(gt=0, le=1)] = 0.5
    """Largest rise in the share of repeated 4-grams within responses over the first round."""
    patience: Annotated[int, Whole(1, 10_000_000)] = 3
    """Rounds in a row past a limit before the run ends as `loss_diverged`."""


class ResourceSpec(Strict):
    gpus: Annotated[int, Whole(0, 1024)] = 1
    """Ranks, one accelerator each; where the worker has none, as many ranks share the CPU (0 counts as 1)."""
    gpu_memory_gib: Annotated[float, Real(gt=0, le=4096)] | None = None
    """Memory that each accelerator must have at least: the job waits for a worker with such. Any when left out."""
    zero_stage: Annotated[int, Whole(0, 3)] = 1
    cpu_offload: Flag = False
    """Keeps optimizer states (and, at stage 3, parameters) in main memory."""

    @property
    def ranks(self) -> int:
        return max(1, self.gpus)

    @property
    def gpu_memory_bytes(self) -> int | None:
        return None if self.gpu_memory_gib is None else round(self.gpu_memory_gib * 2**30)


class SchedulingSpec(Strict):
    priority: Annotated[int, Whole(-100, 100)] = 0
    """Higher runs first."""
    max_runtime_seconds: Annotated[int, Whole(1, MAX_RUNTIME_SECONDS)] | None = None
    """Wall-clock limit over all attempts, from the first start; the job then ends as `expired`."""
    max_attempts: Annotated[int, Whole(1, 100)] = 3
