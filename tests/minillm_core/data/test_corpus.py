"""Plain text becomes blocks without a gap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillm_core.data import corpus
from minillm_core.data.corpus import load_corpus
from minillm_core.errors import UserError
from tests.tiny_models import SENTENCES, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def test_jsonl_documents_are_joined_by_eos(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    expected = [
        token
        for text in SENTENCES
        for token in [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    ]
    tokens_NT = load_corpus(path, TOKENIZER, 64)
    assert tokens_NT.shape == (len(expected) // 64, 64)
    assert tokens_NT.flatten().tolist() == expected[: tokens_NT.numel()]


@pytest.mark.parametrize("piece", [1 << 16, 100, 7])
def test_a_text_file_is_one_document_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(corpus, "_PIECE_CHARACTERS", piece)
    text = "\n".join(SENTENCES) + "\n"
    path = tmp_path / "corpus.txt"
    path.write_text(text)
    tokens = load_corpus(path, TOKENIZER, 1).flatten().tolist()
    assert tokens[-1] == TOKENIZER.eos_token_id and tokens.count(TOKENIZER.eos_token_id) == 1
    assert TOKENIZER.decode(tokens[:-1]) == text


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    path.write_text('{"text": "a"}\n{"words": "b"}\n')
    with pytest.raises(UserError, match='line 2: the row has no "text"') as caught:
        load_corpus(path, TOKENIZER, 4)
    assert caught.value.param == "/pretrain_corpus/file"
    path.write_text("short")
    with pytest.raises(UserError, match="fewer than one block of 512"):
        load_corpus(path, TOKENIZER)
    path.write_text("")
    with pytest.raises(UserError, match="no text"):
        load_corpus(path, TOKENIZER)
    path.write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(UserError, match="not UTF-8"):
        load_corpus(path, TOKENIZER)
