"""What a model's folder holds and what is wrong with it, found without torch: one check for the API and the trainer.

A folder is judged alone and from its own files: JSON, and the headers of safetensors files. The functions raise nothing
for what lies in it; everything found is a :class:`FolderProblem`. ``trust_remote_code=False`` has been bypassed by
fields of config.json more than once (CVE-2026-4372, CVE-2026-5241), so what asks for code is refused before any loader
sees it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from minillm_core.spec.folder_files import FolderFiles, Missing, Unreadable, check_no_pointer, read_exactly, shown
from minillm_core.spec.tokenizer_files import tokenizer_fingerprint

FAMILIES = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
"""``model_type`` of each family whose head, masks and layers are tested to be reproduced exactly."""

CONFIG_BYTES = 4 << 20
HEADER_BYTES = 16 << 20
TEMPLATE_BYTES = 1 << 20
LARGEST_NUMBER = 2**63 - 1

INCOMPLETE = "model_incomplete"
UNREADABLE = "model_unreadable"
UNSUPPORTED = "unsupported_model"
NOT_CAUSAL = "not_a_causal_lm"
BAD_ADAPTER = "adapter_invalid"

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_WIDTHS = ("hidden_size", "n_embd", "intermediate_size", "num_attention_heads", "n_head", "num_key_value_heads")
_LARGEST_SHAPE = 2**31 - 1
_MOST_LAYERS = 10_000
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Files that name classes; vocabularies are large and name none.
_CONFIGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    ADAPTER_CONFIG,
)
_CODE_FIELDS = frozenset(
    {
        "auto_map",
        "trust_remote_code",
        "custom_pipelines",
        "custom_pipeline",
        "use_kernels",
        "kernel_config",
        "custom_generate",
        "megatron_config",
    }
)
_IMPLEMENTATION_FIELDS = frozenset(
    f"{prefix}{kind}_implementation{suffix}"
    for kind in ("attn", "experts")
    for prefix, suffix in (("", ""), ("_", ""), ("_", "_internal"))
)
# A built-in attention has a plain name; owner/repository is fetched from the hub and run.
_PLAIN_NAME = re.compile(r"[a-z0-9_]*")
_HEAD = "lm_head.weight"
_EMBEDDINGS = (
    "model.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
)
_TIED_UNLESS_TOLD = frozenset({"gpt2", "opt", "gemma", "gemma2", "gemma3_text"})
# What files of older releases hold beside the weights: GPT-2's causal mask, rotary frequencies.
_BUFFER = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class FolderProblem:
    """One reason why a folder cannot be used."""

    code: str
    """``model_incomplete`` (a file is not there), ``model_unreadable``, ``unsupported_model``, ``not_a_causal_lm`` or
    ``adapter_invalid``."""
    detail: str
    """What is wrong, and with which file; no path outside of the folder."""


@dataclass(frozen=True)
class ModelDescription:
    """What is known of a model; zero or empty where it could not be read. Numbers are below 2**63."""

    architecture: str = ""
    """First entry of `architectures` in config.json, such as `LlamaForCausalLM`."""
    causal_lm: bool = False
    parameters: int = 0
    """Elements of all tensors, tied ones once."""
    layers: int = 0
    vocab_size: int = 0
    """Rows of the head as the config says, padding included."""
    context_length: int | None = None
    tokenizer_fingerprint: str | None = None
    """Equal for tokenizers that give every text the same ids; None where only the trainer can tell."""
    dtype: str | None = None
    bytes: int = 0
    """Size of all files together."""

    def columns(self) -> dict[str, Any]:
        """Keyword arguments for :class:`store.db.tables.Model`."""
        return asdict(self)


@dataclass(frozen=True)
class Inspection:
    """What was found in a folder; it can be used where there are no problems."""

    description: ModelDescription = ModelDescription()
    problems: tuple[FolderProblem, ...] = ()

    @property
    def told(self) -> str:
        """All problems as one text."""
        return "; ".join(problem.detail for problem in self.problems)


def is_adapter(folder: Path) -> bool:
    """Whether the folder is meant as an adapter: it describes one, and no model."""
    return os.path.lexists(folder / ADAPTER_CONFIG) and not os.path.lexists(folder / "config.json")


def inspect_model(folder: Path, root: Path | None = None) -> Inspection:
    """Look at a Hugging Face model folder. Files that are links are read only as far as they lie under ``root``."""
    return _inspect(folder, root, _model)


def inspect_adapter(folder: Path, root: Path | None = None) -> Inspection:
    """Look at the folder of a LoRA adapter as PEFT writes it; ``parameters`` and ``bytes`` are the adapter's."""
    return _inspect(folder, root, _adapter)


def _inspect(folder: Path, root: Path | None, look: Callable[[FolderFiles, _Findings], None]) -> Inspection:
    found = _Findings()
    try:
        files = FolderFiles(folder, root)
        found.describe(bytes=min(files.bytes, LARGEST_NUMBER))
        look(files, found)
    except Unreadable as error:
        found.unreadable(error)
    except Exception as error:
        # One folder that nobody thought of must not stand in the way of the others.
        found.problem(UNREADABLE, f"the folder cannot be read ({type(error).__name__})")
    return Inspection(found.description, tuple(found.problems))


class _Findings:
    def __init__(self) -> None:
        self.description = ModelDescription()
        self.problems: list[FolderProblem] = []

    def describe(self, **values: Any) -> None:
        self.description = replace(self.description, **values)

    def problem(self, code: str, detail: str) -> None:
        self.problems.append(FolderProblem(code, detail))

    def unreadable(self, error: Unreadable) -> None:
        self.problem(INCOMPLETE if isinstance(error, Missing) else UNREADABLE, str(error))


# ------------------------------------------------------------------------------------------------ models


def _model(files: FolderFiles, found: _Findings) -> None:
    if ADAPTER_CONFIG in files.names and "config.json" in files.names:
        # A loader would take the model that the adapter names in place of this one.
        found.problem(UNSUPPORTED, f"{ADAPTER_CONFIG} beside config.json: a folder holds a model or an adapter")
    _code(files, found)
    config: dict[str, Any] = {}
    try:
        config = files.json_object("config.json", CONFIG_BYTES)
        _config(config, found)
    except Unreadable as error:
        found.unreadable(error)
    try:
        _weights(files, config, found)
    except Unreadable as error:
        found.unreadable(error)
    try:
        found.describe(tokenizer_fingerprint=tokenizer_fingerprint(files))
    except Unreadable as error:
        found.unreadable(error)


def _config(config: dict[str, Any], found: _Findings) -> None:
    # A model with several towers keeps the language model's numbers in a part of their own.
    text = config.get("text_config")
    shape = {**config, **text} if isinstance(text, dict) else config
    named = config.get("architectures")
    architectures = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    causal = not config.get("is_encoder_decoder") and any(
        name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures
    )
    model_type, dtype = config.get("model_type"), config.get("dtype") or config.get("torch_dtype")
    if not causal:
        listed = ", ".join(shown(name) for name in architectures[:5]) or "none"
        found.problem(NOT_CAUSAL, f"not a causal language model (architectures: {listed})")
    elif model_type not in FAMILIES:
        found.problem(
            UNSUPPORTED, f"models of type {shown(model_type)} are not supported; these are: {', '.join(FAMILIES)}"
        )
    if any(part.get(name) for part in (config, shape) for name in ("quantization_config", "compression_config")):
        found.problem(UNSUPPORTED, "quantised weights cannot be trained on: use the model's full weights")
    found.describe(
        architecture=shown(architectures[0]) if architectures else "",
        causal_lm=causal,
        dtype=shown(dtype) if dtype is not None else None,
    )
    try:
        found.describe(
            layers=_number(shape, _LAYERS, _MOST_LAYERS) or 0,
            vocab_size=_number(shape, ("vocab_size",), _LARGEST_SHAPE) or 0,
            context_length=_number(shape, _CONTEXT, _LARGEST_SHAPE),
        )
        for name in _WIDTHS:
            _number(shape, (name,), _LARGEST_SHAPE)
    except Unreadable as error:
        # Another family may mean something else by the same name.
        if causal and model_type in FAMILIES:
            found.unreadable(error)


def _number(config: dict[str, Any], names: tuple[str, ...], largest: int) -> int | None:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= largest:
            return value
        raise Unreadable(f"config.json: {name} is {shown(value, 30)}, not a number from 1 to {largest}")
    return None


def _weights(files: FolderFiles, config: dict[str, Any], found: _Findings) -> None:
    """Count the tensors of the files that transformers would load."""
    if WEIGHTS in files.names:
        names = [WEIGHTS]
    elif WEIGHTS_INDEX in files.names:
        names = _shards(files)
    else:
        _no_weights(files, found)
        return
    sizes: dict[str, int] = {}
    quantised = None
    for name in names:
        for tensor, (elements, dtype) in _tensors(files, name).items():
            sizes[tensor] = elements
            if dtype not in _FLOATS and tensor.endswith(".weight"):
                quantised = f"{shown(tensor)} is {dtype}"
    total = sum(_parameters(sizes, config))
    if total > LARGEST_NUMBER:
        raise Unreadable(f"the weights have {total} elements")
    found.describe(parameters=total)
    if quantised is not None:
        found.problem(
            UNSUPPORTED, f"quantised weights cannot be trained on ({quantised}): use the model's full weights"
        )


def _parameters(sizes: dict[str, int], config: dict[str, Any]) -> Iterator[int]:
    """Elements of each tensor that is a parameter, a head that is tied to the embedding left out."""
    tied = config.get("tie_word_embeddings", config.get("model_type") in _TIED_UNLESS_TOLD)
    for name, elements in sizes.items():
        if name == _HEAD and tied and any(sizes.get(embedding) == elements for embedding in _EMBEDDINGS):
            continue
        if not _BUFFER.search(name):
            yield elements


def _shards(files: FolderFiles) -> list[str]:
    index = files.json_object(WEIGHTS_INDEX, HEADER_BYTES)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise Unreadable(f"{WEIGHTS_INDEX} has no weight_map of tensors and files")
    names = sorted(set(places.values()))
    for name in names:
        if PurePosixPath(name).name != name or "\0" in name or not name.endswith(".safetensors"):
            raise Unreadable(f"{WEIGHTS_INDEX} names {shown(name)}, which is no safetensors file of the folder")
        if name not in files.names:
            raise Missing(f"there is no {shown(name)}, which {WEIGHTS_INDEX} names")
    return names


def _no_weights(files: FolderFiles, found: _Findings) -> None:
    def such(*endings: str) -> str | None:
        return next((shown(name) for name in sorted(files.names) if name.lower().endswith(endings)), None)

    if (name := such(".safetensors")) is not None:
        found.problem(INCOMPLETE, f"{name} is not loaded without {WEIGHTS_INDEX}; a single file is named {WEIGHTS}")
    elif (name := such(*_PICKLED)) is not None:
        found.problem(
            UNSUPPORTED,
            f"the weights are pickled ({name}): reading them could run code, so they are not read. Save the model "
            "with safetensors",
        )
    elif (name := such(".gguf")) is not None:
        found.problem(UNSUPPORTED, f"{name} is GGUF: python -m minillm_core.models.gguf makes a model folder of it")
    else:
        found.problem(INCOMPLETE, f"there are no weights: neither {WEIGHTS} nor {WEIGHTS_INDEX}")


def _tensors(files: FolderFiles, name: str) -> dict[str, tuple[int, str]]:
    """Elements and dtype of each tensor, from the header: 8 bytes of little-endian length, then JSON.

    The bytes of the tensors must follow one another and fill the file, as the safetensors format asks.
    """
    with files.open(name) as file:
        size = os.fstat(file.fileno()).st_size
        start = read_exactly(file, min(size, 64), name)
        check_no_pointer(start, name)
        length = int.from_bytes(start[:8], "little")
        if size >= 8 and length > HEADER_BYTES:
            raise Unreadable(f"{name} is not a safetensors file (its header would have {length:,} bytes)")
        if size < 8 + length:
            raise Unreadable(f"{name} is cut short")
        raw = (start + read_exactly(file, max(0, 8 + length - len(start)), name))[8 : 8 + length]
    try:
        header = json.loads(raw.decode("utf-8"))
        places = {tensor: _place(entry) for tensor, entry in dict(header).items() if tensor != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(f"{name} is not a safetensors file") from error
    end = 0
    for begins, ends, _, _ in sorted(places.values()):
        if begins != end or ends < begins:
            raise Unreadable(f"{name} is not a safetensors file (its tensors do not follow one another)")
        end = ends
    if size < 8 + length + end:
        raise Unreadable(f"{name} is cut short: it has {size:,} of {8 + length + end:,} bytes")
    if size > 8 + length + end:
        raise Unreadable(f"{name} is not a safetensors file (there are bytes after its tensors)")
    return {tensor: (elements, dtype) for tensor, (_, _, elements, dtype) in places.items()}


def _place(entry: Any) -> tuple[int, int, int, str]:
    """(first byte, byte after the last, elements, dtype) of a tensor. Raises ValueError, KeyError or TypeError."""
    dtype, shape = entry["dtype"], entry["shape"]
    begins, ends = entry["data_offsets"]
    for number in (*shape, begins, ends):
        if type(number) is not int or not 0 <= number <= LARGEST_NUMBER:
            raise ValueError("not a number of bytes or elements")
    elements = 1
    for extent in shape:
        elements *= extent
        if elements > LARGEST_NUMBER:
            raise ValueError("too many elements")
    if elements * _BITS[dtype] != (ends - begins) * 8:
        raise ValueError("the shape does not fit the bytes")
    return begins, ends, elements, dtype


# ---------------------------------------------------------------------------------------------- adapters


def _adapter(files: FolderFiles, found: _Findings) -> None:
    _code(files, found)
    try:
        kind = files.json_object(ADAPTER_CONFIG, CONFIG_BYTES).get("peft_type")
        if kind != "LORA":
            found.problem(BAD_ADAPTER, f"the adapter is of type {shown(kind)}; only LORA is merged")
        if ADAPTER_WEIGHTS in files.names:
            tensors = _tensors(files, ADAPTER_WEIGHTS)
            found.describe(parameters=min(sum(elements for elements, _ in tensors.values()), LARGEST_NUMBER))
        elif any(name.startswith("adapter_model.") for name in files.names):
            found.problem(BAD_ADAPTER, f"the adapter is pickled: only {ADAPTER_WEIGHTS} is read")
        else:
            raise Missing(f"there is no {ADAPTER_WEIGHTS}")
    except Unreadable as error:
        found.problem(INCOMPLETE if isinstance(error, Missing) else BAD_ADAPTER, str(error))


# --------------------------------------------------------------------------------------------------- code


def _code(files: FolderFiles, found: _Findings) -> None:
    """Note every field that would fetch or run code, and templates that are too long to be any."""
    fields: list[str] = []
    for name in _CONFIGS:
        if name not in files.names:
            continue
        try:
            fields += [f"{name}: {field}" for field in _code_fields(files.json_object(name, CONFIG_BYTES))]
        except Unreadable as error:
            # The two that are read for themselves are told there.
            if name not in ("config.json", ADAPTER_CONFIG):
                found.unreadable(error)
    if fields:
        found.problem(
            UNSUPPORTED, f"the model would load code of its own ({', '.join(fields[:10])}), which is never run"
        )
    for name in sorted(files.names):
        if name.endswith(".jinja"):
            try:
                files.read(name, TEMPLATE_BYTES)
            except Unreadable as error:
                found.unreadable(error)


def _code_fields(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _code_fields(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if (name in _CODE_FIELDS and item) or (name in _IMPLEMENTATION_FIELDS and not _is_plain(item)):
                yield name
            else:
                yield from _code_fields(item)


def _is_plain(value: Any) -> bool:
    """Whether an implementation setting names built-in ones only; the trainer then takes its own all the same."""
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or (isinstance(value, str) and _PLAIN_NAME.fullmatch(value) is not None)
