"""The weights that a phase ends with."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from minillm_core.errors import SystemFault
from minillm_core.models.lora import merge_lora
from minillm_core.train.checkpoints import disk_fault
from minillm_core.train.distributed import Ranks
from minillm_core.train.engine import Engine


def trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> parameter of all that training moves; tied weights once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_weights(engine: Engine, path: Path, ranks: Ranks) -> None:
    """Write the trained weights to ``path``, whole or not at all; every rank calls this."""
    with engine.whole_model() as model:
        if ranks.main:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trainable(model).items()}
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                save_file(tensors, aside)
                with aside.open("rb") as file:
                    os.fsync(file.fileno())
                aside.replace(path)
            except (OSError, SafetensorError) as error:
                aside.unlink(missing_ok=True)
                raise disk_fault(error, "the best weights") from error
    ranks.barrier()


def load_weights(model: nn.Module, path: Path) -> None:
    """Take the weights of :func:`save_weights`. Raises SystemFault where they do not fit."""
    tensors = load_file(path)
    parameters = trainable(model)
    if tensors.keys() != parameters.keys():
        raise SystemFault("checkpoint_unreadable", f"{path.name} is of another model than this run's")
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def merged_model(model: nn.Module) -> PreTrainedModel:
    """The model to measure and to export: itself, or a copy with its adapter merged.

    The copy costs memory, but merging in place and back would change the frozen weights by a
    rounding error each round.
    """
    if isinstance(model, PeftModel):
        return merge_lora(copy.deepcopy(model))
    assert isinstance(model, PreTrainedModel)
    return model
