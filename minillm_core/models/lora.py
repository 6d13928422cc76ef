"""Low-rank adapters: trained on the student, merged into the teacher (Hu et al. 2021)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from minillm_core.errors import UserError
from minillm_core.models.loading import check_adapter
from minillm_core.spec import LoraSpec
from minillm_core.spec.model_folder import ADAPTER_WEIGHTS

_ADAPTED = (BaseTunerLayer, ModulesToSaveWrapper)
_TARGETS_PARAM = "/student/lora/target_modules"


def add_lora(model: PreTrainedModel, lora: LoraSpec) -> PeftModel:
    """Add a trainable adapter; the model's own weights are frozen. It starts as the identity.

    The adapter has the model's dtype, so that one engine holds one number format. Raises UserError
    ``invalid_value`` when an entry of ``target_modules`` is no layer of the model, or the head, whose plain weight
    the losses take.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
        # GPT-2 stores its weights transposed.
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise UserError("invalid_value", f"the adapter does not fit: {error}", param=_TARGETS_PARAM) from error
    if lost := list(_without_layer(adapted)):
        raise UserError("invalid_value", f"the adapter does not fit: {'; '.join(lost)}", param=_TARGETS_PARAM)
    if isinstance(model.get_output_embeddings(), _ADAPTED) or _adapts_tied(model):
        raise UserError(
            "invalid_value", "the output head and an embedding tied to it cannot be adapted", param=_TARGETS_PARAM
        )
    return adapted


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """Add the adapter to the weights and take it off. The model given is used up."""
    merged = model.merge_and_unload()
    merged.requires_grad_(True)
    return merged


def merge_adapter(model: PreTrainedModel, folder: Path, *, param: str = "/teacher/adapter") -> PreTrainedModel:
    """The model with the adapter of ``folder`` merged into it, in place.

    Raises UserError as :func:`minillm_core.models.loading.check_adapter`, and ``adapter_invalid`` when the
    adapter is of another model in any of its tensors or targets, or adapts an embedding tied to the head.
    """
    check_adapter(folder, param=param)
    try:
        adapted = PeftModel.from_pretrained(
            model, str(folder), is_trainable=False, autocast_adapter_dtype=False, local_files_only=True
        )
        unplaced = _unplaced(adapted, load_file(folder / ADAPTER_WEIGHTS))
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, OSError, SafetensorError) as error:
        raise UserError("adapter_invalid", f"the adapter does not fit the teacher: {error}", param=param) from error
    if unplaced := [*_without_layer(adapted), *unplaced]:
        raise UserError("adapter_invalid", f"the adapter does not fit the teacher: {'; '.join(unplaced)}", param=param)
    if _adapts_tied(model):
        raise UserError(
            "adapter_invalid", "it adapts an embedding tied to the head: merged, it would change both", param=param
        )
    return merge_lora(adapted).requires_grad_(False)


def _unplaced(adapted: PeftModel, tensors: dict[str, torch.Tensor]) -> list[str]:
    """What of the adapter's file has no place in the model, and what of the model's adapter the file does not fill."""
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    taken = set_peft_model_state_dict(adapted, dict(tensors))
    told = []
    if taken.unexpected_keys:
        told.append(f"no layer of the model takes {_listed(taken.unexpected_keys)}")
    if missing := sorted(expected - tensors.keys()):
        told.append(f"the file lacks {_listed(missing)}")
    return told


def _without_layer(adapted: PeftModel) -> Iterator[str]:
    """Which entries of the adapter's config are of no layer of the model: PEFT is content with one that is."""
    config = adapted.peft_config[adapted.active_adapter]
    layers = adapted.base_model.targeted_module_names
    kept = [name for name, module in adapted.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    for field, names, among in (
        ("target_modules", config.target_modules, layers),
        ("modules_to_save", config.modules_to_save, kept),
    ):
        # One text is a pattern for all layers, and PEFT refuses one that fits none.
        for name in sorted(names) if isinstance(names, (list, set, tuple)) else ():
            if not any(layer == name or layer.endswith(f".{name}") for layer in among):
                yield f"{field} names {name!r}, which is no layer of the model{_nearest(adapted, name)}"
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in sorted(getattr(config, field) or {}):
            if not any(re.match(rf"(.*\.)?({pattern})$", layer) for layer in layers):
                yield f"{field} has {pattern!r}, which fits no layer that is adapted"
    chosen = config.layers_to_transform
    for number in [chosen] if isinstance(chosen, int) else chosen or []:
        if not any(f".{number}." in layer for layer in layers):
            yield f"layers_to_transform has {number}, and no layer of that number is adapted"


def _nearest(adapted: PeftModel, name: str) -> str:
    known = sorted({layer.rpartition(".")[2] for layer, module in adapted.named_modules() if hasattr(module, "weight")})
    near = difflib.get_close_matches(name.rpartition(".")[2], [layer for layer in known if layer != "default"], 1)
    return f" (is {near[0]!r} meant?)" if near else ""


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more


def _adapts_tied(model: PreTrainedModel) -> bool:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return bool(model.config.tie_word_embeddings) and any(isinstance(end, _ADAPTED) for end in ends)
