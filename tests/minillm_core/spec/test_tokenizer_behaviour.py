"""Tokenizers are the same where they do the same, however their files are written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from minillm_core.models.loading import load_tokenizer
from minillm_core.spec.folder_files import FolderFiles, Unreadable
from minillm_core.spec.tokenizer_behaviour import fingerprint
from minillm_core.spec.tokenizer_files import FINGERPRINT_VERSION, same_tokenizer, tokenizer_fingerprint
from tests.tiny_models import END, SENTENCES, START, tiny_tokenizer

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TENFOLD = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def byte_level() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    for first, second in (("1", "2"), ("12", "3")):
        vocab[first + second] = len(vocab)
        merges.append([first, second])
    return content


def words() -> list[str]:
    return sorted({f"▁{word}" for sentence in SENTENCES for word in sentence.split()})


def marked(**parts: Any) -> dict[str, Any]:
    """A vocabulary of pieces that write a space as SentencePiece does, with a token for each byte."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", START, END, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return json.loads(tokenizer.to_str()) | parts


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def qwen() -> dict[str, Any]:
    content = byte_level()
    content["normalizer"] = {"type": "NFC"}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split(QWEN), BYTES]}
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    return content


def thousands() -> dict[str, Any]:
    content = qwen()
    content["pre_tokenizer"]["pretokenizers"][0] = split(QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))
    return content


def gpt2() -> dict[str, Any]:
    content = byte_level()
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    for name in ("byte_fallback", "ignore_merges", "dropout", "fuse_unk"):
        content["model"].pop(name, None)
    return content


def digits() -> dict[str, Any]:
    content = byte_level()
    parts = [{"type": "Digits", "individual_digits": True}, BYTES | {"use_regex": True}]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    return content


def llama2() -> dict[str, Any]:
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    return marked(normalizer={"type": "Sequence", "normalizers": steps}, pre_tokenizer=None)


def metaspace() -> dict[str, Any]:
    old = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    return marked(pre_tokenizer=old, decoder=old)


def gemma() -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return marked(normalizer=replaced, pre_tokenizer=cut)


def unigram() -> dict[str, Any]:
    content = marked()
    pieces = [*content["model"]["vocab"], *words()]
    content["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [[p, -0.5 * n] for n, p in enumerate(pieces)]}
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}
    return content


def word_level() -> dict[str, Any]:
    content = byte_level()
    vocab = {token: number for number, token in enumerate(["<|unknown|>", START, END, *words()])}
    content["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": "<|unknown|>"}
    content["pre_tokenizer"] = {"type": "Whitespace"}
    return content


def word_piece() -> dict[str, Any]:
    content = word_level()
    content["model"] |= {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    content["normalizer"] = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    content["normalizer"] |= {"strip_accents": None, "lowercase": True}
    return content


def own_added() -> dict[str, Any]:
    content = byte_level()
    number = len(content["model"]["vocab"])
    shape = {"single_word": False, "lstrip": True, "rstrip": False, "normalized": True, "special": False}
    content["added_tokens"].insert(0, {"id": number, "content": "<tool>", **shape})
    return content


def one_call() -> dict[str, Any]:
    content = byte_level()
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2}
    content["padding"] |= {"pad_type_id": 0, "pad_token": END}
    content["model"]["dropout"] = 0.5
    return content


def roles_not_added() -> dict[str, Any]:
    return byte_level() | {"added_tokens": []}


FORMS: tuple[Callable[[], dict[str, Any]], ...] = (
    qwen,
    thousands,
    gpt2,
    digits,
    llama2,
    metaspace,
    gemma,
    unigram,
    word_level,
    word_piece,
    own_added,
    one_call,
    roles_not_added,
)


def write(folder: Path, content: dict[str, Any], family: str = "qwen2", **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    named = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": START, "eos_token": END, "pad_token": "<pad>"}
    named |= {"unk_token": "<|unknown|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": family, **ids}))
    return folder


def of(folder: Path) -> str:
    found = tokenizer_fingerprint(FolderFiles(folder))
    assert found is not None
    return found


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_what_is_saved_again_is_the_same(form: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    teacher = write(tmp_path / "teacher", form())
    tokenizer = load_tokenizer(teacher)
    # Used as it is in the file, whatever the family's class would make of it.
    texts = ["1234567 isn't  it\n Straße e\u0301 東京 🙂", SENTENCES[0], f"a{END}b"]
    mine = Tokenizer.from_str((teacher / "tokenizer.json").read_text())
    mine.no_truncation()
    mine.no_padding()
    if form is not one_call and form is not roles_not_added:
        assert tokenizer(texts, add_special_tokens=False)["input_ids"] == [
            mine.encode(text, add_special_tokens=False).ids for text in texts
        ]
    tokenizer.save_pretrained(tmp_path / "student")
    assert of(teacher) == of(tmp_path / "student") == FINGERPRINT_VERSION + fingerprint(tokenizer.backend_tokenizer)


def test_each_form_is_another_tokenizer(tmp_path: Path) -> None:
    found = {form.__name__: of(write(tmp_path / form.__name__, form())) for form in FORMS}
    # What is of one call, or said by the other file, makes no other tokenizer of it.
    assert found.pop("one_call") == found.pop("roles_not_added") == found.pop("gpt2")
    assert len(set(found.values())) == len(found)


def test_two_orders_of_merges(tmp_path: Path) -> None:
    content = byte_level()
    vocab = {token: number for token, number in content["model"]["vocab"].items() if len(token) == 1}
    content["added_tokens"] = []
    vocab = {token: number for number, token in enumerate([*vocab, "ab", "bc", START, END])}
    content["model"] |= {"vocab": vocab, "merges": [["a", "b"], ["b", "c"]], "unk_token": None}
    first = of(write(tmp_path / "first", content))
    content["model"]["merges"].reverse()
    assert of(write(tmp_path / "second", content)) != first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"pre_tokenizer": split("(a+)+$")}, "", marks=pytest.mark.slow),
        ({"pre_tokenizer": split("(?<x")}, "cannot be used"),
        ({"normalizer": {"type": "Nothing"}}, "cannot be used"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": [["x", "y"]]}}, "cannot be used"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}}, "cannot be used"),
        ({"model": {"type": "BPE", "vocab": {"a": 2**31 - 1}, "merges": []}}, None),
        # Takes all the memory that it is let have, which takes a while.
        pytest.param(
            {"normalizer": {"type": "Sequence", "normalizers": [TENFOLD] * 30}},
            "cannot be used",
            marks=pytest.mark.slow,
        ),
    ],
    ids=range(7),
)
def test_a_file_that_is_made_to_harm_is_told_and_harms_nobody(
    change: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", byte_level() | change)
    started = time.monotonic()
    try:
        found = of(folder)
        assert not words and found
    except Unreadable as error:
        assert words in (None, "") or str(words) in str(error)
        assert len(str(error)) < 500
    assert time.monotonic() - started < 200


def test_what_is_not_known_is_the_trainers_to_say() -> None:
    assert same_tokenizer("2:a", "2:a") is True and same_tokenizer("2:a", "2:b") is False
    assert same_tokenizer("2:a", None) is same_tokenizer("a", "2:a") is same_tokenizer("a", "b") is None


def test_without_tokenizer_json_it_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    assert tokenizer_fingerprint(FolderFiles(tmp_path)) is None


def test_roles_that_only_the_config_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "gpt2", gpt2(), "gpt2", bos_token=None, eos_token=None, tokenizer_class="GPT2Tokenizer")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (START, END, None)
