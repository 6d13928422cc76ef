"""What a run was trained on, as hashes: a run that goes on sees the same tokens, or is told what has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from minillm_core.data.dataset import Dataset, TokenizedRow
from minillm_core.errors import UserError
from minillm_core.spec.tokenizer_behaviour import fingerprint

CODE = "dataset_changed"

# What decides whether a run can go on, and what may be the reason that it cannot.
_TOKENS = {"train": "the rows to train on", "dev": "the rows held out", "corpus": "the corpus"}
_REASONS = {
    "file": "the file of the dataset has other bytes",
    "corpus_file": "the file of the corpus has other bytes",
    "tokenizer": "the teacher's tokenizer cuts texts otherwise",
    "chat_template": "the teacher's chat template is another",
    "settings": "the settings of the dataset or the lengths are others",
}


def marks_of(
    dataset: Dataset,
    corpus: torch.Tensor | None,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, object],
    files: Mapping[str, Path],
) -> dict[str, str]:
    """A hash of all that decides which tokens a run sees; ``files`` by the names ``file`` and ``corpus_file``."""
    marks = {name: _of_file(path) for name, path in files.items()}
    marks["tokenizer"] = fingerprint(tokenizer.backend_tokenizer)
    marks["chat_template"] = _of([json.dumps(tokenizer.chat_template, sort_keys=True)])
    marks["settings"] = _of([json.dumps(settings, sort_keys=True)])
    marks["train"], marks["dev"] = _of_rows(dataset.train), _of_rows(dataset.dev)
    if corpus is not None:
        marks["corpus"] = hashlib.sha256(corpus.numpy().tobytes()).hexdigest()
    return marks


def check_unchanged(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise UserError ``dataset_changed`` where a run would go on with other tokens than it began with."""
    changed = [what for name, what in _TOKENS.items() if before.get(name) != now.get(name)]
    if not changed:
        return
    reasons = [why for name, why in _REASONS.items() if before.get(name) != now.get(name)]
    raise UserError(
        CODE,
        f"the run cannot go on, since {' and '.join(changed)} are no longer what it was trained on so far: "
        f"{'; '.join(reasons) or 'they are rendered otherwise than before'}. Put back what it was, or start a new job",
        param="/dataset/file",
    )


def _of_rows(rows: Iterable[TokenizedRow]) -> str:
    return _of(json.dumps([row.prompt_ids, row.response_ids, row.truncated]) for row in rows)


def _of(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
