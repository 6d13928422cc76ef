"""The student as a folder that ``AutoModelForCausalLM.from_pretrained`` loads, whole or not there."""

from __future__ import annotations

import copy
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minillm_core.data.chat_template import chat_template_of
from minillm_core.data.templates import Template
from minillm_core.export.card import RunFacts, model_card
from minillm_core.manifests import commit_folder, folder_bytes, verify_folder
from minillm_core.models.pruning import without_origin
from minillm_core.spec import REPORT_FILE, DType, JobSpec

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

_SHARD = "5GB"
# A class of the tokenizers library that takes tokenizer.json as it is, by the name that all releases know.
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# What this release of transformers says of its own call; older ones cannot take the last, which is a list.
_OF_ONE_CALL = ("backend", "is_local", "local_files_only", "extra_special_tokens")


@dataclass(frozen=True)
class ExportedStudent:
    path: Path
    manifest_sha256: str
    bytes: int


def write_student(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    spec: JobSpec,
    facts: RunFacts,
    dtype: DType,
    end_ids: Sequence[int],
    report: Mapping[str, Any],
) -> ExportedStudent:
    """Write weights (safetensors, ``dtype``), config, generation config, tokenizer, model card and report.

    ``model`` is a plain transformers model (adapters merged) and is not changed. ``end_ids`` are the
    tokens that end a response: generation stops at each. The folder is filled under another name,
    verified and then renamed; an earlier one is replaced. Raises OSError when the disk refuses.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}.aside-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside = folder.with_name(f".{folder.name}.aside-{uuid.uuid4().hex}")
    aside.mkdir()
    try:
        weights = _stored(model, getattr(torch, dtype))
        save_torch_state_dict(weights, aside, max_shard_size=_SHARD, metadata={"format": "pt"})
        _write_configs(aside, model, tokenizer, dtype, end_ids)
        _write_tokenizer(aside, tokenizer, spec.dataset.template)
        (aside / "README.md").write_text(model_card(spec, facts))
        (aside / REPORT_FILE).write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", errors="replace")
        data = {
            "dtype": dtype,
            "parameters": facts.parameters,
            "teacher_parameters": facts.teacher_parameters,
            "job_id": facts.job_id,
        }
        manifest_sha256 = commit_folder(aside, folder, "student", data)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return ExportedStudent(folder, manifest_sha256, folder_bytes(verify_folder(folder)))


def _stored(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors to write: on the CPU, floating ones in ``dtype``, a tied head left to its embedding."""
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    return {
        name: _own_storage(tensor.detach(), dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in model.state_dict().items()
        if name not in tied
    }


def _own_storage(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """On the CPU and in memory of its own: ZeRO keeps all parameters as views of one flat tensor."""
    stored = tensor.to("cpu", dtype).contiguous()
    shares = stored.untyped_storage().nbytes() != stored.numel() * stored.element_size()
    return stored.clone() if shares else stored


def _write_configs(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: DType, end_ids: Sequence[int]
) -> None:
    config = without_origin(copy.deepcopy(model.config))
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    config.use_cache = True
    (folder / CONFIG).write_text(json.dumps(_for_all_readers(config), indent=2, sort_keys=True) + "\n")
    ends = list(dict.fromkeys(end_ids))
    # Made afresh: a teacher's own temperature or penalties were no part of the training.
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
    ).save_pretrained(folder)


def _for_all_readers(config: PreTrainedConfig) -> dict[str, Any]:
    """The whole config under the names of transformers 5 and those of 4, which vLLM and llama.cpp read as well.

    Whole, because what is left out is filled in by each release with a default of its own.
    """
    said = json.loads(config.to_json_string(use_diff=False))
    content: dict[str, Any] = {name: value for name, value in said.items() if not name.startswith("_")}
    content["torch_dtype"] = content["dtype"]
    rope = content.get("rope_parameters") or {}
    full = rope.get("full_attention") or rope
    if "rope_theta" in full:
        content["rope_theta"] = full["rope_theta"]
        scaling = {name: value for name, value in full.items() if name != "rope_theta"}
        content["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if isinstance(local := rope.get("sliding_attention"), dict) and "rope_theta" in local:
        content["rope_local_base_freq"] = local["rope_theta"]
    return content


def _write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """The tokenizer with the training's template as its chat template, where older and newer programs look for it."""
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    content = {name: value for name, value in content.items() if name not in _OF_ONE_CALL}
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    content["chat_template"] = chat_template_of(template, tokenizer)
    content["tokenizer_class"] = _TOKENIZER_CLASS
    (folder / CHAT_TEMPLATE).write_text(content["chat_template"], encoding="utf-8")
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
