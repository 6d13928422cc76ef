"""The weights a model computes with, by name: LoRA adapters merged in, nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from minillm_core.models.families import unwrapped


def effective_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters of the transformers model by their names there, without gradients.

    Those of a layer with LoRA are its own plus the adapters' low-rank products (new tensors); all
    others are the model's own tensors. Under ZeRO-3 the parameters must be gathered.
    """
    with torch.no_grad():
        return dict(_named(unwrapped(model)))


def _named(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not any(name.startswith(f"{prefix}.") for prefix in adapted):
            yield name, parameter.detach()
    for name, module in adapted.items():
        weight = module.base_layer.weight.detach()
        if not module.merged and not module.disable_adapters:
            for adapter in module.active_adapters:
                if adapter in module.lora_A:
                    weight = weight + module.get_delta_weight(adapter).to(weight.dtype)
        yield f"{name}.weight", weight
        if module.base_layer.bias is not None:
            yield f"{name}.bias", module.base_layer.bias.detach()
