"""Low-rank adapters: trained on the student, merged into the teacher (Hu et al. 2021)."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from minillm_core.errors import UserError
from minillm_core.models.loading import check_adapter
from minillm_core.spec import LoraSpec

_ADAPTED = (BaseTunerLayer, ModulesToSaveWrapper)
_TARGETS_PARAM = "/student/lora/target_modules"


def add_lora(model: PreTrainedModel, lora: LoraSpec) -> PeftModel:
    """Add a trainable adapter; the model's own weights are frozen. It starts as the identity.

    The adapter has the model's dtype, so that one engine holds one number format. Raises UserError
    ``invalid_value`` when ``target_modules`` names no layer of the model, or the head, whose plain weight
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
    adapter is of another model or adapts an embedding tied to the head.
    """
    check_adapter(folder, param=param)
    try:
        adapted = PeftModel.from_pretrained(
            model, str(folder), is_trainable=False, autocast_adapter_dtype=False, local_files_only=True
        )
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise UserError("adapter_invalid", f"the adapter does not fit the teacher: {error}", param=param) from error
    if _adapts_tied(model):
        raise UserError(
            "adapter_invalid", "it adapts an embedding tied to the head: merged, it would change both", param=param
        )
    return merge_lora(adapted).requires_grad_(False)


def _adapts_tied(model: PreTrainedModel) -> bool:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return bool(model.config.tie_word_embeddings) and any(isinstance(end, _ADAPTED) for end in ends)
