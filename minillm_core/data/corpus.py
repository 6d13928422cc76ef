"""Plain text for the pre-training loss, as blocks of equal length.

Axes: N blocks, T tokens of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from minillm_core.data.formats import read
from minillm_core.errors import UserError
from minillm_core.spec.rows import corpus_documents

PARAM = "/pretrain_corpus/file"
_PIECE_CHARACTERS = 1 << 16

CORPUS_BLOCK_TOKENS = 512
"""Length of a block, as in the paper."""


def load_corpus(
    path: Path, tokenizer: PreTrainedTokenizerBase, block_tokens: int = CORPUS_BLOCK_TOKENS
) -> torch.Tensor:
    """Blocks ``tokens_NT`` (int32, T = ``block_tokens``): all documents joined, an eos after each.

    A file of rows (JSONL, a JSON array, CSV) has a ``text`` in every row, a document each; any
    other file is one document of plain text. What does not fill the last block is left
    out. Raises UserError ``dataset_invalid`` when a line is wrong or the text fills no block.
    """
    tokens: list[np.ndarray] = []
    for document in read(path, corpus_documents, PARAM):
        tokens += [np.asarray(ids, dtype=np.int32) for ids in _pieces(document, tokenizer)]
        tokens.append(np.asarray([tokenizer.eos_token_id], dtype=np.int32))
    joined = np.concatenate(tokens) if tokens else np.zeros(0, dtype=np.int32)
    blocks = len(joined) // block_tokens
    if blocks == 0:
        raise UserError(
            "dataset_invalid",
            f"the corpus has {len(joined)} tokens, fewer than one block of {block_tokens}",
            param=PARAM,
        )
    return torch.from_numpy(joined[: blocks * block_tokens].reshape(blocks, block_tokens))


def _pieces(document: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of a document, a few lines at a time: one call on a whole book takes its memory many times over."""
    start = 0
    while start < len(document):
        end = document.rfind("\n", start, start + _PIECE_CHARACTERS) + 1
        if end <= start or start + _PIECE_CHARACTERS >= len(document):
            end = min(len(document), start + _PIECE_CHARACTERS)
        yield tokenizer(document[start:end], add_special_tokens=False)["input_ids"]
        start = end
