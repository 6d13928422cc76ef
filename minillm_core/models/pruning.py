"""Students made of their teacher's own layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from minillm_core.errors import UserError
from minillm_core.models.families import layers_name

_PARAM = "/student/prune_teacher/layers"
_PER_LAYER_LISTS = ("layer_types",)


def kept_layers(total: int, layers: int | list[int]) -> list[int]:
    """Numbers of the layers to keep: those given, or that many evenly spread with the first and the last.

    Raises UserError ``too_many_layers`` when the teacher, of ``total`` layers, does not have them.
    """
    if isinstance(layers, list):
        if layers[-1] >= total:
            raise UserError(
                "too_many_layers", f"there is no layer {layers[-1]}: the teacher's are 0 to {total - 1}", param=_PARAM
            )
        return list(layers)
    if layers > total:
        raise UserError("too_many_layers", f"{layers} layers asked for, the teacher has {total}", param=_PARAM)
    if layers == 1:
        return [0]
    # In whole numbers: half up, so that no machine rounds otherwise.
    return [(2 * index * (total - 1) + layers - 1) // (2 * (layers - 1)) for index in range(layers)]


def pruned_config(teacher: PreTrainedConfig, layers: int | list[int]) -> PreTrainedConfig:
    """The teacher's config with the layers of :func:`kept_layers` alone. Raises UserError ``too_many_layers``."""
    total = teacher.num_hidden_layers
    kept = kept_layers(total, layers)
    config = without_origin(copy.deepcopy(teacher))
    config.num_hidden_layers = len(kept)
    for name in _PER_LAYER_LISTS:
        values = getattr(config, name, None)
        if isinstance(values, list) and len(values) == total:
            setattr(config, name, [values[layer] for layer in kept])
    return config


def prune_layers(teacher: PreTrainedModel, layers: int | list[int]) -> PreTrainedModel:
    """A new model with the teacher's embeddings, head and the layers of :func:`kept_layers`, in its dtype.

    It is built from an adjusted config, so that attention layers know their new place in the cache,
    and shares no storage with the teacher. Raises UserError ``too_many_layers``.
    """
    kept = kept_layers(teacher.config.num_hidden_layers, layers)
    config = pruned_config(teacher.config, layers)
    with no_init_weights():
        student = type(teacher)._from_config(config, dtype=teacher.dtype)
        # Tying belongs to the initialisation that was skipped.
        student.tie_weights()
    student.load_state_dict(_renumbered(teacher.state_dict(), layers_name(teacher), kept))
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.to(teacher.device).eval()


def without_origin(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config without what tells where its weights came from: it is about to describe others.

    A model read from GGUF carries a ``quantization_config`` that makes saving it an error.
    """
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    config._name_or_path = ""
    return config


def _renumbered(state: dict[str, torch.Tensor], stack: str, kept: list[int]) -> dict[str, Any]:
    place = {layer: index for index, layer in enumerate(kept)}
    result = {}
    for name, tensor in state.items():
        if not name.startswith(f"{stack}."):
            result[name] = tensor
            continue
        layer, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if int(layer) in place:
            result[f"{stack}.{place[int(layer)]}.{rest}"] = tensor
    return result
