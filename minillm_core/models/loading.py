"""Where a model reference leads, and how its folder becomes a model.

Only safetensors and JSON are read and no code from a model folder ever runs: a model with its own
code is refused by name, not ignored. What can be seen without torch is looked at by
:mod:`minillm_core.spec.model_folder`, as the service does before it takes a job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from minillm_core.errors import UserError
from minillm_core.spec import RunContext
from minillm_core.spec.folder_files import FolderFiles
from minillm_core.spec.model_folder import UNREADABLE, Inspection, inspect_adapter, inspect_model
from minillm_core.spec.tokenizer_behaviour import fingerprint, from_file
from minillm_core.spec.tokenizer_files import TOKENIZER, special_tokens

HUB_TIMEOUT_SECONDS = 10.0
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model"]
_HUB_IGNORED = ["*/*", "consolidated*"]
# What configs of older releases say in place of a field that the family has now.
_OLDER_FIELDS = frozenset(
    {
        "torch_dtype",
        "rope_theta",
        "rope_scaling",
        "rope_local_base_freq",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "sliding_window_pattern",
        "_sliding_window_pattern",
    }
)
_ROLES = ("bos_token", "eos_token")


def resolve(
    reference: str, revision: str | None, context: RunContext, run_dir: Path, *, param: str = "/teacher/model"
) -> Path:
    """The folder on this machine that ``reference`` names, downloaded first where it is ``hub:``.

    ``path:`` and ``model_`` are looked up in ``context.models``; without an entry a ``path:`` is
    tried against the current folder and ``run_dir``. Raises UserError ``model_not_found`` (no such
    folder) or ``model_unavailable`` (the hub does not answer or refuses; within seconds, never a
    hang; retryable where waiting may help), and as :func:`check_model` or, where ``param`` is of an
    adapter, :func:`check_adapter`.
    """
    folder = _locate(reference, revision, context, run_dir, param)
    root = None
    if reference.startswith("hub:"):
        root = folder.parent.parent  # Its files are links to where the cache keeps them.
    elif reference in context.models:
        root = folder.parent
    (check_adapter if param.endswith("/adapter") else check_model)(folder, root, param=param)
    return folder


def _locate(reference: str, revision: str | None, context: RunContext, run_dir: Path, param: str) -> Path:
    if reference in context.models:
        candidates = [Path(context.models[reference])]
    elif reference.startswith("path:"):
        name = reference.removeprefix("path:")
        candidates = [Path(name), run_dir / name]
    elif reference.startswith("hub:"):
        return _download(reference.removeprefix("hub:"), revision, context, param)
    else:
        candidates = []
    # By hand the current folder may have one of that name by chance.
    for folder in sorted(candidates, key=lambda folder: not (folder / "config.json").exists()):
        if folder.is_dir():
            return folder.resolve()
    tried = ", ".join(map(str, candidates)) or "nothing: this machine has no entry for it"
    raise UserError("model_not_found", f"{reference} is no folder on this machine (tried {tried})", param=param)


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


def check_model(path: Path, root: Path | None = None, *, param: str = "/teacher/model") -> None:
    """Raise UserError with the code of what stands first against using the folder as a model, and all reasons.

    Files that are links are read only as far as they lie under ``root``, where it is given.
    """
    _check(inspect_model, path, root, param)


def check_adapter(path: Path, root: Path | None = None, *, param: str = "/teacher/adapter") -> None:
    """The same for the folder of an adapter."""
    _check(inspect_adapter, path, root, param)


def _check(inspect: Callable[[Path, Path | None], Inspection], path: Path, root: Path | None, param: str) -> None:
    found = inspect(path, root)
    if found.problems:
        raise UserError(found.problems[0].code, f"{path.name}: {found.told}", param=param)


def read_config(path: Path, *, param: str = "/teacher/model") -> PreTrainedConfig:
    """The config of a folder that :func:`check_model` accepts, with what its family knows and nothing else.

    Raises UserError ``unsupported_model`` where the family does not take the values.
    """
    content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    kind = CONFIG_MAPPING[content["model_type"]]
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map) | _OLDER_FIELDS
    try:
        return kind.from_dict({name: value for name, value in content.items() if name in known})
    except Exception as error:
        # Every field has a type of its own, and several libraries judge it.
        raise UserError("unsupported_model", f"{path.name}: config.json: {error}", param=param) from error


def load_tokenizer(path: Path, *, param: str = "/teacher/model") -> PreTrainedTokenizerBase:
    """The folder's tokenizer: tokenizer.json as it is, where there is one, with the roles and templates beside it.

    A class that transformers has for a family builds the tokenizer anew from the vocabulary alone, with what most
    models of the family do to a text, and this one may do otherwise. Raises UserError ``model_unreadable`` when there
    is none that can be read.
    """
    try:
        if not (path / TOKENIZER).is_file():
            return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        return _as_in_file(path)
    except Exception as error:
        # Three libraries read it, each with errors of its own.
        raise UserError(UNREADABLE, f"{path.name} has no readable tokenizer: {error}", param=param) from error


def _as_in_file(path: Path) -> PreTrainedTokenizerBase:
    content = (path / TOKENIZER).read_text(encoding="utf-8")
    beside = PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    backend = from_file(content, special_tokens(FolderFiles(path)))
    vocabulary = backend.get_vocab(with_added_tokens=True)
    roles = {name: token for name, token in beside.special_tokens_map.items() if isinstance(token, str)}
    roles = {name: token for name, token in roles.items() if token in vocabulary}
    for name in _ROLES:
        if name not in roles and (token := _named_in_config(path, name, backend)) is not None:
            roles[name] = token
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=beside.chat_template,
        model_max_length=beside.model_max_length,
        clean_up_tokenization_spaces=beside.clean_up_tokenization_spaces,
        padding_side=beside.padding_side,
        truncation_side=beside.truncation_side,
        **roles,
    )


def _named_in_config(path: Path, role: str, backend: Tokenizer) -> str | None:
    """The token that config.json has for a role: of some families the tokenizer's files do not say it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = json.loads((path / "config.json").read_text(encoding="utf-8")).get(f"{role}_id")
        number = number[0] if isinstance(number, list) and number else number
        return backend.id_to_token(number) if type(number) is int and 0 <= number < 2**31 else None
    return None


def load_causal_lm(
    path: Path, dtype: torch.dtype, device: torch.device | str = "cpu", *, param: str = "/teacher/model"
) -> PreTrainedModel:
    """The folder's model in evaluation mode, parameters in ``dtype``.

    Attention is ``sdpa``, or ``eager`` where the family caps its attention scores. Raises UserError
    as :func:`check_model` and :func:`read_config`, and ``unsupported_model`` when the weights do not
    fill the model: what is missing would otherwise be random numbers.
    """
    check_model(path, param=param)
    config = read_config(path, param=param)
    # Gemma 2 caps its attention scores, which transformers computes eagerly alone, also where a config has no caps.
    attention = "eager" if config.model_type == "gemma2" or _caps_attention(config) else "sdpa"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path),
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError("unsupported_model", f"{path.name} cannot be loaded: {error}", param=param) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            "unsupported_model", f"the weights lack {len(missing)} tensors, such as {missing[0]}", param=param
        )
    # Of the model's own settings for generation nothing acts on what is measured.
    model.generation_config = GenerationConfig()
    if model.config.tie_word_embeddings and not _shares_its_embedding(model):
        # The file has a head of its own: what is made of the model shall have one too.
        model.config.tie_word_embeddings = False
    return model.to(device).eval()


def _caps_attention(config: PreTrainedConfig) -> bool:
    return getattr(config, "attn_logit_softcapping", None) is not None


def _shares_its_embedding(model: PreTrainedModel) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head.weight is embedding.weight


def check_same_tokenizer(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Raise UserError ``tokenizer_mismatch`` unless both give every text the same ids."""
    if fingerprint(teacher.backend_tokenizer) == fingerprint(student.backend_tokenizer):
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
