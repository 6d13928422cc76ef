"""DeepSpeed as the engine of every run: one rank or many, ZeRO 0 to 3, offload, mixed precision.

The loop sums losses and divides by the global token count itself, so the engine is configured to
scale nothing: one micro-batch a step as far as it knows, the accumulation boundary set by hand
(each rank may need another number of micro-batches), and the mean over ranks that DeepSpeed takes
undone by the factor ``world`` in :meth:`Engine.backward`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

from minillm_core.errors import SystemFault, UserError
from minillm_core.spec import DType, ResourceSpec
from minillm_core.train.distributed import Ranks
from minillm_core.train.student import StudentModule

ENGINE_DIR = "engine"
_TAG = "state"
_ADAM_EPS = 1e-8
_FP16_INITIAL_SCALE_POWER = 11
_BUCKET_ELEMENTS = 200_000_000

TORCH_DTYPES: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def effective_zero_stage(resources: ResourceSpec, dtype: DType, ranks: Ranks) -> int:
    """The stage in use: below 3, partitioning over one rank saves nothing and costs a copy of the gradients.

    Half-precision training keeps stage 1 even then, for the float32 master weights that its
    optimizer holds.
    """
    if resources.zero_stage == 3 or resources.cpu_offload or ranks.world > 1:
        return resources.zero_stage
    return 0 if dtype == "float32" else max(1, resources.zero_stage)


class Engine:
    """A module, its AdamW and its place in ZeRO.

    ``learning_rate`` is set before each step: schedules are functions of the step number and
    need no state of their own.
    """

    def __init__(
        self,
        module: StudentModule,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        grad_clip: float,
        dtype: DType,
        resources: ResourceSpec,
        ranks: Ranks,
    ) -> None:
        if dtype == "float16" and ranks.device.type == "cpu":
            raise UserError(
                "dtype_unsupported",
                "float16 training needs an accelerator; this worker has none: use bfloat16 or float32",
                param="/training/dtype",
            )
        self._ranks = ranks
        self.zero_stage = effective_zero_stage(resources, dtype, ranks)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if resources.cpu_offload:
            optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(
                parameters, lr=learning_rate, betas=betas, eps=_ADAM_EPS, weight_decay=weight_decay, adamw_mode=True
            )
        else:
            optimizer = torch.optim.AdamW(
                parameters, lr=learning_rate, betas=betas, eps=_ADAM_EPS, weight_decay=weight_decay, fused=True
            )
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.is_floating_point()}
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=_config(self.zero_stage, dtype, grad_clip, resources.cpu_offload),
            dist_init_required=False,
        )
        for name, buffer in module.named_buffers():
            if name in buffers:
                # DeepSpeed rounds buffers to the training dtype too: rotary frequencies must stay float32.
                buffer.data = buffers[name].to(ranks.device)
        self._parameters = parameters

    @property
    def module(self) -> StudentModule:
        return self._engine.module  # type: ignore[no-any-return]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate the gradient of ``loss`` (a sum over this rank's tokens, divided by the global count).

        ``last`` marks the final micro-batch of the step, the same call on every rank.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._ranks.world)

    def step(self, learning_rate: float) -> float:
        """Clip and apply the accumulated gradients; returns their norm before clipping.

        The norm is nan where the loss scale overflowed and the step was skipped.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self._local_norm() if self.zero_stage == 0 else None
        self._engine.step()
        if norm is None:
            norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def _local_norm(self) -> torch.Tensor | None:
        """DeepSpeed reports no norm without ZeRO; one rank has all gradients at hand."""
        if self._ranks.world > 1:
            return None
        grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(grads) if grads else None

    @contextlib.contextmanager
    def whole_parameters(self) -> Iterator[None]:
        """Within it every rank sees every parameter whole, which under ZeRO-3 it otherwise does not."""
        if self.zero_stage < 3:
            yield
            return
        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            yield

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and loss scale of all ranks into ``folder``; every rank calls this."""
        self._engine.save_checkpoint(str(folder / ENGINE_DIR), tag=_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Take up what :meth:`save` wrote. Raises SystemFault where it does not fit this run."""
        path, _ = self._engine.load_checkpoint(str(folder / ENGINE_DIR), tag=_TAG)
        if path is None:
            raise SystemFault("checkpoint_unreadable", f"the checkpoint {folder} cannot be loaded")

    def close(self) -> None:
        """Free the optimizer's memory and hooks, so that the module can go into another engine."""
        self._engine.destroy()


def _config(stage: int, dtype: DType, grad_clip: float, cpu_offload: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": _BUCKET_ELEMENTS,
        "allgather_bucket_size": _BUCKET_ELEMENTS,
    }
    if cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True}
    elif dtype == "float16":
        config["fp16"] = {"enabled": True, "initial_scale_power": _FP16_INITIAL_SCALE_POWER}
    return config


def scheduled_rate(schedule: str, step: int, *, peak: float, total: int, warmup: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of ``total``: linear warm-up, then the schedule."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    share = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return peak * (1.0 - share)
    return peak * 0.5 * (1.0 + math.cos(math.pi * share))
