"""DeepSpeed as the engine of every run: one rank or many, ZeRO 0 to 3, offload, mixed precision.

The loop sums losses and divides by the global token count itself, so the engine is configured to
scale nothing: one micro-batch a step as far as it knows, the accumulation boundary set by hand
(each rank may need another number of micro-batches), and the mean over ranks that DeepSpeed takes
undone by the factor ``world`` in :meth:`Engine.backward`.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import nn

from minillm_core.errors import SystemFault, UserError
from minillm_core.spec import DType, ResourceSpec
from minillm_core.train.distributed import Ranks
from minillm_core.train.student import StudentModule

ENGINE_DIR = "engine"
_TAG = "state"
_ADAM_EPS = 1e-8
_FP16_INITIAL_SCALE_POWER = 11
_LOWEST_SCALE = "loss scale already at minimum"
"""Of the plain Exception that DeepSpeed raises then."""
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


def check_dtype(dtype: DType, device: torch.device) -> None:
    """Raises UserError ``dtype_unsupported`` for float16 on a CPU, which computes it very slowly."""
    if dtype == "float16" and device.type == "cpu":
        raise UserError(
            "dtype_unsupported",
            "float16 training needs an accelerator; this worker has none: use bfloat16 or float32",
            param="/training/dtype",
        )


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
        check_dtype(dtype, ranks.device)
        self._ranks = ranks
        self._dtype = dtype
        self.zero_stage = effective_zero_stage(resources, dtype, ranks)
        self._plain = _hollow_copy(module.model) if self.zero_stage == 3 else module.model
        self._gathered = False
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
            config=deepspeed_config(self.zero_stage, dtype, grad_clip, resources.cpu_offload),
            dist_init_required=False,
        )
        if self.zero_stage == 0 and ranks.world == 1:
            # It would copy all gradients into one tensor, reduce that over one rank, and copy them back.
            self._engine.enable_backward_allreduce = False
        for name, buffer in module.named_buffers():
            if name in buffers:
                # DeepSpeed rounds buffers to the training dtype too: rotary frequencies must stay float32.
                buffer.data = buffers[name].to(ranks.device)
        self._parameters = parameters

    @property
    def reads_gradients_last(self) -> bool:
        """Whether gradients are taken from ``.grad`` once the backward pass is over, and not as they are formed."""
        return self.zero_stage == 0 and self._dtype == "float32"

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

    def step(self, learning_rate: float) -> float | None:
        """Clip and apply the accumulated gradients; returns their norm before clipping.

        The norm is None where it is not known: without ZeRO over several ranks, and where float16 overflowed
        its loss scale, which DeepSpeed answers with a lower scale and without a step. Any other norm that is
        not finite, and an overflow at the lowest scale, is the run's divergence; it is returned as it is.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self._local_norm() if self.zero_stage == 0 else None
        try:
            self._engine.step()
        except Exception as error:
            if _LOWEST_SCALE in str(error):
                return math.inf
            raise
        if norm is None:
            norm = self._engine.get_global_grad_norm()
        if norm is None or (self._dtype == "float16" and not math.isfinite(norm)):
            return None
        return float(norm)

    def _local_norm(self) -> torch.Tensor | None:
        """DeepSpeed reports no norm without ZeRO; one rank has all gradients at hand."""
        if self._ranks.world > 1:
            return None
        grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(grads) if grads else None

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The model with every parameter whole on every rank, to decode with, to measure or to save.

        Below ZeRO-3 it is the model in training itself. Under ZeRO-3, whose parameters lie in pieces and
        whose hooks would scatter them again after each layer, it is a twin without hooks that borrows the
        gathered tensors for as long as the context lasts. Every rank enters and leaves together.
        """
        if self.zero_stage < 3 or self._gathered:
            yield self._plain
            return
        scattered = list(self.module.model.parameters())
        borrowed = list(self._plain.parameters())
        with deepspeed.zero.GatheredParameters(scattered):
            for parameter, source in zip(borrowed, scattered, strict=True):
                parameter.data = source.data
            self._gathered = True
            try:
                yield self._plain
            finally:
                self._gathered = False
                for parameter in borrowed:
                    parameter.data = parameter.data.new_empty(0)

    def finished_model(self) -> nn.Module:
        """The model for what comes after this engine, with parameters of its own; every rank calls this."""
        if self.zero_stage < 3:
            return self._plain
        with self.whole_model() as whole:
            tensors = [parameter.data.clone() for parameter in whole.parameters()]
        for parameter, tensor in zip(self._plain.parameters(), tensors, strict=True):
            parameter.data = tensor
        return self._plain

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


def _hollow_copy(model: nn.Module) -> nn.Module:
    """A copy of all but the tensors of the parameters, which are empty in it."""
    empty = {
        id(parameter): nn.Parameter(parameter.data.new_empty(0), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, empty)


def deepspeed_config(stage: int, dtype: DType, grad_clip: float, cpu_offload: bool) -> dict[str, Any]:
    """What DeepSpeed is told: it scales nothing and steps when the loop says so."""
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
        # A loss scale of 0 is DeepSpeed's word for a dynamic one; the figures are those of the published code.
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": _FP16_INITIAL_SCALE_POWER,
            "loss_scale_window": 2000,
            "hysteresis": 4,
        }
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
