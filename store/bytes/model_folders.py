"""What a model folder holds, read from its JSON files and safetensors headers without torch."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_LARGEST_JSON = 64 * 1024 * 1024
_LARGEST_HEADER = 100 * 1024 * 1024

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")


class NotAModel(Exception):
    """The folder holds no model that can be described. The message says what is missing or wrong."""


@dataclass(frozen=True)
class ModelDescription:
    architecture: str
    """First entry of `architectures` in config.json, such as `LlamaForCausalLM`."""
    causal_lm: bool
    parameters: int
    """Elements of all tensors, tied ones once."""
    layers: int
    vocab_size: int
    """Rows of the head as the config says, padding included."""
    context_length: int | None
    tokenizer_fingerprint: str | None
    """sha256 over the vocabulary and merges: equal for tokenizers that give equal ids."""
    dtype: str | None
    bytes: int
    """Size of all files together."""

    def columns(self) -> dict[str, Any]:
        """Keyword arguments for :class:`store.db.tables.Model`."""
        return asdict(self)


def describe(folder: Path) -> ModelDescription:
    """Describe a Hugging Face model folder.

    Raises NotAModel where config.json or the safetensors weights are missing or unreadable.
    """
    config = _read_json(folder / "config.json")
    # A model with several towers keeps the language model's numbers in a part of their own.
    text = config.get("text_config")
    shape = {**config, **text} if isinstance(text, dict) else config
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise NotAModel(f"{folder.name}: no .safetensors file")
    sizes = [_tensor_sizes(path) for path in weights]
    dtype = config.get("dtype") or config.get("torch_dtype")
    return ModelDescription(
        architecture=architecture,
        causal_lm=architecture.endswith(("ForCausalLM", "LMHeadModel")),
        parameters=sum(sum(tensors.values()) for tensors in sizes),
        layers=_number(shape, _LAYERS) or 0,
        vocab_size=_number(shape, ("vocab_size",)) or 0,
        context_length=_number(shape, _CONTEXT),
        tokenizer_fingerprint=tokenizer_fingerprint(folder),
        dtype=str(dtype) if dtype is not None else None,
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )


def tokenizer_fingerprint(folder: Path) -> str | None:
    """sha256 of what decides the ids of a text; None without tokenizer files.

    ``tokenizer.json`` counts by its model (vocabulary and merges), added tokens, normalizer and
    pre-tokenizer, so that truncation, padding and templates do not tell equal tokenizers apart.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        content = _read_json(path)
        model = content.get("model") if isinstance(content.get("model"), dict) else {}
        assert isinstance(model, dict)
        merges = model.get("merges") or []
        parts = {
            "type": model.get("type"),
            "vocab": model.get("vocab"),
            # Written as "a b" by older versions and as ["a", "b"] by newer ones.
            "merges": [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges],
            "added": sorted(
                (token.get("id", -1), token.get("content", "")) for token in content.get("added_tokens") or []
            ),
            "normalizer": content.get("normalizer"),
            "pre_tokenizer": content.get("pre_tokenizer"),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    found = False
    for name in _TOKENIZER_FILES[1:]:
        path = folder / name
        if path.is_file():
            found = True
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest() if found else None


def _number(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53:
            return value
    return None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotAModel(f"{path.parent.name}: no {path.name}")
    if path.stat().st_size > _LARGEST_JSON:
        raise NotAModel(f"{path.parent.name}: {path.name} is larger than {_LARGEST_JSON} bytes")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise NotAModel(f"{path.parent.name}: {path.name} is not JSON") from error
    if not isinstance(content, dict):
        raise NotAModel(f"{path.parent.name}: {path.name} is not a JSON object")
    return content


def _tensor_sizes(path: Path) -> dict[str, int]:
    """Elements of each tensor, from the header: 8 bytes of little-endian length, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError("header too large")
            header = json.loads(file.read(length))
        sizes: dict[str, int] = {}
        end = 0
        for name, entry in header.items():
            if name != "__metadata__":
                sizes[name] = math.prod(int(extent) for extent in entry["shape"])
                end = max(end, int(entry["data_offsets"][1]))
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotAModel(f"{path.parent.name}: {path.name} is not a safetensors file") from error
    if path.stat().st_size < 8 + length + end:
        raise NotAModel(f"{path.parent.name}: {path.name} is cut short")
    return sizes
