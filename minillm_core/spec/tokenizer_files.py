"""The files of a tokenizer: what they do to a text, found without loading them into the process that asks."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minillm_core.spec.folder_files import FolderFiles, Missing, Unreadable, json_object, shown

FINGERPRINT_VERSION = "2:"
"""What fingerprints begin with. It changes with what they are made of: those of two versions say nothing together."""
TOKENIZER = "tokenizer.json"
LARGEST_TOKENIZER = 64 << 20
_OTHER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_ROLE_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_LARGEST_CONFIG = 4 << 20
_MOST_SPECIAL = 10_000
_PATIENCE_SECONDS = 300.0
_REMEMBERED = 200
_READER = Path(__file__).with_name("tokenizer_behaviour.py")

# Models of one family, and students with their teachers, have the same files. Answers are short.
_answers: OrderedDict[bytes, dict[str, str]] = OrderedDict()
_lock = threading.Lock()


def tokenizer_fingerprint(files: FolderFiles) -> str | None:
    """:func:`minillm_core.spec.tokenizer_behaviour.fingerprint` of the folder's tokenizer.json.

    None where there is none but files of an older kind, which only the trainer reads, or where this machine lacks the
    library. Raises Missing without tokenizer files, else Unreadable.
    """
    if TOKENIZER not in files.names:
        present = [name for name in _OTHER_FILES if name in files.names]
        if not present:
            raise Missing("there is no tokenizer: neither tokenizer.json nor the files of an older kind")
        for name in present:
            files.read(name, LARGEST_TOKENIZER)
        return None
    content = files.read(TOKENIZER, LARGEST_TOKENIZER)
    _check(json_object(content, TOKENIZER))
    return _behaviour(content, list(special_tokens(files)))


def same_tokenizer(one: str | None, other: str | None) -> bool | None:
    """Whether two fingerprints are of tokenizers that do the same; None where that is not known."""
    if one is None or other is None or not all(known.startswith(FINGERPRINT_VERSION) for known in (one, other)):
        return None
    return one == other


def special_tokens(files: FolderFiles) -> Iterator[str | dict[str, Any]]:
    """The tokens that the folder's other files name for a role or as special, as they are written there."""
    for name in _ROLE_FILES:
        if name not in files.names:
            continue
        content = files.json_object(name, _LARGEST_CONFIG)
        named = [value for key, value in sorted(content.items()) if key.endswith("_token")]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            value = content.get(key)
            named += value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
        for token in named[:_MOST_SPECIAL]:
            if isinstance(token, str) or (isinstance(token, dict) and isinstance(token.get("content"), str)):
                yield token


def _behaviour(content: bytes, special: list[str | dict[str, Any]]) -> str | None:
    if importlib.util.find_spec("tokenizers") is None:
        return None
    given = json.dumps(special).encode() + b"\n" + content
    digest = hashlib.sha256(given).digest()
    with _lock:
        answer = _answers.get(digest)
    if answer is None:
        answer = _read(given)
        with _lock:
            _answers[digest] = answer
            while len(_answers) > _REMEMBERED:
                _answers.popitem(last=False)
    if "problem" in answer:
        raise Unreadable(f"{TOKENIZER} cannot be used: {shown(answer['problem'], 300)}")
    return FINGERPRINT_VERSION + answer["fingerprint"]


def _read(given: bytes) -> dict[str, str]:
    """Have a process of its own read the file, which can loop, fill the memory or crash what reads it."""
    environment = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PATH": os.environ.get("PATH", "")}
    try:
        ended = subprocess.run(
            [sys.executable, "-I", str(_READER)],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"it takes more than {_PATIENCE_SECONDS:.0f} s to read"}
    with contextlib.suppress(ValueError):
        answer: dict[str, str] = json.loads(ended.stdout)
        return answer
    if ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"problem": "it takes too much processor time or memory to read"}
    return {"problem": f"what reads it breaks down (exit status {ended.returncode})"}


def _check(content: dict[str, Any]) -> None:
    model = content.get("model")
    if not isinstance(model, dict):
        raise Unreadable("tokenizer.json has no model")
    if not _is_vocabulary(model.get("vocab")):
        raise Unreadable("tokenizer.json: model.vocab is neither tokens with numbers nor a list of tokens with scores")
    for merge in _listed(model.get("merges"), "model.merges"):
        # Written as "a b" by older versions and as ["a", "b"] by newer ones.
        pair = merge.split(" ", 1) if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise Unreadable("tokenizer.json: model.merges has an entry that is no pair of tokens")
    for token in _listed(content.get("added_tokens"), "added_tokens"):
        if not isinstance(token, dict) or type(token.get("id")) is not int or not 0 <= token["id"] < 2**31:
            raise Unreadable("tokenizer.json: added_tokens has an entry without a number as id")
        if not isinstance(token.get("content"), str):
            raise Unreadable("tokenizer.json: added_tokens has an entry without a text as content")


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
