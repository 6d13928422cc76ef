"""How long, how fast and on what a job trains, and when it gives up."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from minillm_core.spec.base import DType, Strict


class SftPhase(Strict):
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


class TrainingSpec(Strict):
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
    """Starting point of the student; null starts from its weights as they are, and so do `sft` and, unless it is
    given, `seqkd`."""
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


class GuardSpec(Strict):
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


class ResourceSpec(Strict):
    gpus: int = Field(1, ge=0, le=1024)
    """Ranks, one accelerator each; where the worker has none, as many ranks share the CPU (0 counts as 1)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    cpu_offload: bool = False
    """Keeps optimizer states (and, at stage 3, parameters) in main memory."""

    @property
    def ranks(self) -> int:
        return max(1, self.gpus)


class SchedulingSpec(Strict):
    priority: int = Field(0, ge=-100, le=100)
    """Higher runs first."""
    max_runtime_seconds: int | None = Field(None, ge=1)
    """Wall-clock limit over all attempts, from the first start; the job then ends as `expired`."""
    max_attempts: int = Field(3, ge=1, le=100)
