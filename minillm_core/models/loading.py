"""Where a model reference leads, and how its folder becomes a model.

Only safetensors and JSON are read and no code from a model folder ever runs: a model with its own
code is refused by name, not ignored.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minillm_core.errors import UserError
from minillm_core.models.families import FAMILIES
from minillm_core.spec import RunContext

HUB_TIMEOUT_SECONDS = 10.0
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model"]
_HUB_IGNORED = ["*/*", "consolidated*"]
_PROBES = (
    "The quick brown fox, 12345 times; isn't it?\n\n\tdef f(x): return x ** 2",
    "Straße, naïve café, Ελλάδα, 東京, 🙂  two  spaces",
)


def resolve(
    reference: str, revision: str | None, context: RunContext, run_dir: Path, *, param: str = "/teacher/model"
) -> Path:
    """The folder on this machine that ``reference`` names, downloaded first where it is ``hub:``.

    ``path:`` and ``model_`` are looked up in ``context.models``; without an entry a ``path:`` is
    tried against the current folder and ``run_dir``. Raises UserError ``model_not_found`` (no such
    folder) or ``model_unavailable`` (the hub does not answer or refuses; within seconds, never a
    hang; retryable where waiting may help).
    """
    if reference in context.models:
        candidates = [Path(context.models[reference])]
    elif reference.startswith("path:"):
        name = reference.removeprefix("path:")
        candidates = [Path(name), run_dir / name]
    elif reference.startswith("hub:"):
        return _download(reference.removeprefix("hub:"), revision, context, param)
    else:
        candidates = []
    for folder in candidates:
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder.resolve()
    tried = ", ".join(map(str, candidates)) or "nothing: this machine has no entry for it"
    raise UserError(
        "model_not_found", f"{reference} is no model folder with a config.json (tried {tried})", param=param
    )


def _download(repository: str, revision: str | None, context: RunContext, param: str) -> Path:
    where = f"hub:{repository}" + (f" at {revision}" if revision else "")
    reason: str | None = "the hub is switched off on this machine" if context.hub_offline else None
    if reason is None:
        try:
            # One short question first: the download itself asks again and again before it gives up.
            HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
        except GatedRepoError as error:
            raise UserError(
                "model_unavailable", f"{where} asks for a licence to be accepted and a token", param=param
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise UserError("model_unavailable", f"{where} does not exist or is private", param=param) from error
        except Exception as error:
            # Whatever it is: which HTTP library raises here has changed with huggingface_hub's versions.
            reason = f"the hub does not answer ({type(error).__name__})"
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            cache_dir=context.hub_cache,
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_IGNORED,
            etag_timeout=HUB_TIMEOUT_SECONDS,
            local_files_only=reason is not None,
        )
    except LocalEntryNotFoundError as error:
        raise UserError(
            "model_unavailable",
            f"{where} is not on this machine and {reason or 'cannot be downloaded'}: give the service a way to the "
            "hub, or put the model under the models root and name it path:<folder>",
            param=param,
            retryable=not context.hub_offline,
        ) from error
    except Exception as error:
        raise UserError(
            "model_unavailable", f"the download of {where} broke off: {error}", param=param, retryable=True
        ) from error
    return Path(folder)


def read_config(path: Path, *, param: str = "/teacher/model") -> dict[str, Any]:
    """The folder's config.json, checked to be a causal language model that this trainer knows.

    Raises UserError ``model_not_found``, ``not_a_causal_lm`` or ``unsupported_model``.
    """
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError("model_not_found", f"{path} has no readable config.json: {error}", param=param) from error
    if not isinstance(config, dict):
        raise UserError("model_not_found", f"{path / 'config.json'} is not a JSON object", param=param)
    if config.get("auto_map"):
        raise UserError(
            "unsupported_model", "the model brings its own code (auto_map), which is never run", param=param
        )
    architectures = config.get("architectures") or []
    if config.get("is_encoder_decoder") or not any(
        str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures
    ):
        named = ", ".join(map(str, architectures)) or "none"
        raise UserError("not_a_causal_lm", f"not a causal language model (architectures: {named})", param=param)
    if config.get("model_type") not in FAMILIES:
        raise UserError(
            "unsupported_model",
            f"models of type {config.get('model_type')} are not supported; these are: {', '.join(FAMILIES)}",
            param=param,
        )
    if config.get("quantization_config"):
        raise UserError(
            "unsupported_model", "quantised weights cannot be trained on: use the model's full weights", param=param
        )
    return config


def load_tokenizer(path: Path, *, param: str = "/teacher/model") -> PreTrainedTokenizerBase:
    """The folder's tokenizer. Raises UserError ``model_not_found`` when there is none that can be read."""
    try:
        settings = path / "tokenizer_config.json"
        if settings.is_file() and json.loads(settings.read_text()).get("auto_map"):
            raise UserError("unsupported_model", "the tokenizer brings its own code (auto_map)", param=param)
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError("model_not_found", f"{path} has no readable tokenizer: {error}", param=param) from error


def load_causal_lm(
    path: Path, dtype: torch.dtype, device: torch.device | str = "cpu", *, param: str = "/teacher/model"
) -> PreTrainedModel:
    """The folder's model in evaluation mode, parameters in ``dtype``.

    Attention is ``sdpa``, or ``eager`` where the family caps its attention scores. Raises UserError
    as :func:`read_config`, and ``unsupported_model`` when the weights are not safetensors or do not
    fill the model: what is missing would otherwise be random numbers.
    """
    config = read_config(path, param=param)
    if not any(path.glob("*.safetensors")):
        raise UserError(
            "unsupported_model", "the model has no safetensors weights; pickled ones are not read", param=param
        )
    attention = "eager" if config.get("attn_logit_softcapping") is not None else "sdpa"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError("unsupported_model", f"{path} cannot be loaded: {error}", param=param) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            "unsupported_model", f"the weights lack {len(missing)} tensors, such as {missing[0]}", param=param
        )
    return model.to(device).eval()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 (hex) over the vocabulary and how two probe texts are cut: equal for tokenizers that do the same.

    Special roles (which token is eos) and the chat template do not count: base and instruct models share.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    probes = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in _PROBES]
    return hashlib.sha256(json.dumps([vocabulary, probes]).encode()).hexdigest()


def check_same_tokenizer(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Raise UserError ``tokenizer_mismatch`` unless both give every text the same ids."""
    if tokenizer_fingerprint(teacher) == tokenizer_fingerprint(student):
        return
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = sum(1 for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    what = f"{differing} tokens differ in their id" if differing else "they cut texts differently"
    raise UserError(
        "tokenizer_mismatch",
        f"teacher and student must share one tokenizer, but {what} ({len(theirs)} and {len(ours)} tokens)",
        param="/student/model",
    )


def shared_vocab(
    tokenizer: PreTrainedTokenizerBase, teacher_config: PreTrainedConfig, student_config: PreTrainedConfig
) -> int:
    """How many tokens both heads are cut to before the softmax: the real vocabulary, without padding.

    Heads of one tokenizer are padded to different widths (Qwen2.5: 151936 and 152064 rows).
    """
    real = max(tokenizer.get_vocab().values()) + 1
    return min(real, int(teacher_config.vocab_size), int(student_config.vocab_size))
