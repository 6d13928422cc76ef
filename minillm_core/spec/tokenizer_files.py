"""Whether two tokenizers give equal ids, from their files alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from minillm_core.spec.folder_files import FolderFiles, Missing, Unreadable

LARGEST_TOKENIZER = 64 << 20
_OTHER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


def tokenizer_fingerprint(files: FolderFiles) -> str:
    """sha256 of what decides the ids of a text. Raises Missing without tokenizer files, else Unreadable.

    ``tokenizer.json`` counts by its model (vocabulary and merges), added tokens, normalizer and
    pre-tokenizer, so that truncation, padding and templates do not tell equal tokenizers apart.
    """
    if "tokenizer.json" in files.names:
        parts = _parts(files.json_object("tokenizer.json", LARGEST_TOKENIZER))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    present = [name for name in _OTHER_FILES if name in files.names]
    if not present:
        raise Missing("there is no tokenizer: neither tokenizer.json nor the files of an older kind")
    digest = hashlib.sha256()
    for name in present:
        digest.update(name.encode() + b"\0" + files.read(name, LARGEST_TOKENIZER))
    return digest.hexdigest()


def _parts(content: dict[str, Any]) -> dict[str, Any]:
    model = content.get("model")
    if not isinstance(model, dict):
        raise Unreadable("tokenizer.json has no model")
    vocab, merges, added = model.get("vocab"), model.get("merges"), content.get("added_tokens")
    if not _is_vocabulary(vocab):
        raise Unreadable("tokenizer.json: model.vocab is neither tokens with numbers nor a list of tokens with scores")
    return {
        "type": model.get("type"),
        "vocab": vocab,
        # Written as "a b" by older versions and as ["a", "b"] by newer ones.
        "merges": [_merge(merge) for merge in _listed(merges, "model.merges")],
        "added": sorted(_added(token) for token in _listed(added, "added_tokens")),
        "normalizer": content.get("normalizer"),
        "pre_tokenizer": content.get("pre_tokenizer"),
    }


def _is_vocabulary(vocab: Any) -> bool:
    if isinstance(vocab, dict):
        return all(type(number) is int and 0 <= number < 2**31 for number in vocab.values())
    return isinstance(vocab, list) and all(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and type(entry[1]) in (int, float)
        for entry in vocab
    )


def _listed(value: Any, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unreadable(f"tokenizer.json: {name} is no list")
    return value


def _merge(merge: Any) -> list[str]:
    pair = merge.split(" ", 1) if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise Unreadable("tokenizer.json: model.merges has an entry that is no pair of tokens")
    return pair


def _added(token: Any) -> tuple[int, str]:
    if isinstance(token, dict):
        number, content = token.get("id"), token.get("content")
        if type(number) is int and 0 <= number < 2**31 and isinstance(content, str):
            return number, content
    raise Unreadable("tokenizer.json: added_tokens has an entry without a number as id and a text as content")
