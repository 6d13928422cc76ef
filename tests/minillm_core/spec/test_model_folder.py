"""A model's folder may hold anything: what is wrong is told, with the file, and nothing is raised."""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minillm_core.spec.folder_files import MOST_ENTRIES
from minillm_core.spec.model_folder import (
    FAMILIES,
    INCOMPLETE,
    NOT_CAUSAL,
    UNREADABLE,
    UNSUPPORTED,
    inspect_adapter,
    inspect_model,
)
from tests.api.model_folders import write_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
FLOATS = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "root", "model")


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def weights(folder: Path, header: Any, size: int = 4) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(size))


def answer(folder: Path) -> tuple[str, str]:
    """Code of the first problem, and all of them as text that JSON and a database can hold."""
    found = inspect_model(folder, folder.parent)
    assert all(0 <= value < 2**63 for value in found.description.columns().values() if isinstance(value, int))
    json.dumps([found.told, found.description.columns()], ensure_ascii=False).encode()
    assert str(folder.parent) not in found.told and "\0" not in found.told and len(found.told) < 2000
    return (found.problems[0].code if found.problems else "", found.told)


def test_a_good_one(folder: Path) -> None:
    found = inspect_model(folder, folder.parent)
    assert found.problems == ()
    model = found.description
    assert (model.architecture, model.causal_lm, model.layers) == ("LlamaForCausalLM", True, 4)
    assert (model.vocab_size, model.context_length, model.parameters > 1000) == (10, 512, True)
    assert model.bytes == sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize(
    ("config", "code", "words"),
    [
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, NOT_CAUSAL, "BertForMaskedLM"),
        ({"architectures": ["T5LMHeadModel"], "is_encoder_decoder": True}, NOT_CAUSAL, "T5"),
        ({"architectures": None}, NOT_CAUSAL, "none"),
        ({"architectures": "nonsense"}, NOT_CAUSAL, "none"),
        ({"architectures": ["\ud800\n\0ForCausalLM"]}, "", ""),
        ({"architectures": [{"a": 1}, "LlamaForCausalLM"]}, "", ""),
        ({"architectures": ["x" * 10_000]}, NOT_CAUSAL, "xxx..."),
        ({"model_type": "bloom"}, UNSUPPORTED, "bloom"),
        ({"model_type": ["llama"]}, UNSUPPORTED, "['llama']"),
        ({"model_type": "\udcff"}, UNSUPPORTED, "\\udcff"),
        ({"quantization_config": {"quant_method": "awq"}}, UNSUPPORTED, "quantised"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, UNSUPPORTED, "quantised"),
        ({"num_hidden_layers": 10**30}, UNREADABLE, "num_hidden_layers"),
        ({"num_hidden_layers": "many"}, UNREADABLE, "num_hidden_layers"),
        ({"vocab_size": float("inf")}, UNREADABLE, "vocab_size"),
        ({"max_position_embeddings": -1}, UNREADABLE, "max_position_embeddings"),
        ({"max_position_embeddings": True}, UNREADABLE, "max_position_embeddings"),
        ({"hidden_size": 2**40}, UNREADABLE, "hidden_size"),
        ({"dtype": {"\ud800": []}}, "", ""),
        ({"model_type": "gemma3n", "intermediate_size": [8, 8]}, UNSUPPORTED, "gemma3n"),
        ({"auto_map": {"AutoConfig": "x.Y"}}, UNSUPPORTED, "auto_map"),
        ({"text_config": [{"auto_map": {"AutoConfig": "x.Y"}}]}, UNSUPPORTED, "auto_map"),
        ({"trust_remote_code": True}, UNSUPPORTED, "trust_remote_code"),
        ({"use_kernels": True}, UNSUPPORTED, "use_kernels"),
        ({"custom_pipelines": {"x": {"impl": "y.Z"}}}, UNSUPPORTED, "custom_pipelines"),
        ({"_attn_implementation_internal": "owner/kernel"}, UNSUPPORTED, "_attn_implementation_internal"),
        ({"attn_implementation": {"text_config": "owner/kernel:run"}}, UNSUPPORTED, "attn_implementation"),
        ({"_experts_implementation": "owner/kernel"}, UNSUPPORTED, "_experts_implementation"),
        ({"auto_map": None, "trust_remote_code": False, "use_kernels": False}, "", ""),
        ({"_attn_implementation": "sdpa", "_attn_implementation_autoset": True}, "", ""),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)
def test_what_a_config_can_say(config: dict[str, Any], code: str, words: str, folder: Path) -> None:
    edit(folder, "config.json", lambda content: content.update(config))
    found = answer(folder)
    assert found[0] == code
    assert words in found[1]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"{",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"a": "\xe9"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        POINTER,
        b'{"vocab_size": ' + b"9" * 5000 + b"}",
    ],
    ids=range(10),
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"])
def test_files_that_are_no_json_object(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    code, words = answer(folder)
    assert code == UNREADABLE and name in words
    assert ("git lfs pull" in words) is (content == POINTER)


@pytest.mark.parametrize(
    ("header", "size", "words"),
    [
        ({"w": {**FLOATS, "shape": [2**40, 2**40]}}, 4, "not a safetensors file"),
        ({"w": {**FLOATS, "shape": [float("inf")]}}, 4, "not a safetensors file"),
        ({"w": {**FLOATS, "shape": [-1, -1]}}, 4, "not a safetensors file"),
        ({"w": {**FLOATS, "shape": [True]}}, 4, "not a safetensors file"),
        ({"w": {**FLOATS, "shape": 5}}, 4, "not a safetensors file"),
        ({"w": {**FLOATS, "dtype": "X9"}}, 4, "not a safetensors file"),
        ({"w": {**FLOATS, "dtype": ["F32"]}}, 4, "not a safetensors file"),
        ({"w": {**FLOATS, "data_offsets": [0, 4, 8]}}, 4, "not a safetensors file"),
        ({"w": {**FLOATS, "data_offsets": [4, 8]}}, 8, "do not follow one another"),
        ({"w": FLOATS, "v": FLOATS}, 4, "do not follow one another"),
        ({"w": {"dtype": "F32", "shape": [2**61], "data_offsets": [0, 2**63 - 4]}}, 4, "not a safetensors file"),
        ({"w": {"dtype": "F32", "shape": [2**50], "data_offsets": [0, 2**52]}}, 4, "cut short"),
        ({"w": FLOATS}, 3, "cut short"),
        ({"w": FLOATS}, 5, "bytes after"),
        ({"w": 1}, 4, "not a safetensors file"),
        ([FLOATS], 4, "not a safetensors file"),
        (b"{[[[[", 4, "not a safetensors file"),
        (b"", 0, "not a safetensors file"),
        ({"w.weight": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}, 4, "quantised"),
    ],
    ids=range(19),
)
def test_what_a_safetensors_header_can_say(header: Any, size: int, words: str, folder: Path) -> None:
    weights(folder, header, size)
    code, told = answer(folder)
    assert code == (UNSUPPORTED if words == "quantised" else UNREADABLE)
    assert words in told


@pytest.mark.parametrize("content", [b"", b"\x07", b"\xff" * 64, POINTER, struct.pack("<Q", 500) + b"{"], ids=range(5))
def test_weights_that_are_none(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    code, told = answer(folder)
    assert code == UNREADABLE and "model.safetensors" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"vocab": {"a": 0}, "merges": 5}}, "merges"),
        ({"model": {"vocab": {"a": 0}, "merges": [5]}}, "merges"),
        ({"model": {"vocab": {"a": 0}, "merges": ["ab"]}}, "merges"),
        ({"added_tokens": [1]}, "added_tokens"),
        ({"added_tokens": {"a": 1}}, "added_tokens"),
        ({"added_tokens": [{"id": "1", "content": "a"}, {"id": 1, "content": None}]}, "added_tokens"),
        ({"model": None}, "no model"),
        ({"model": {"vocab": {"a": float("inf")}}}, "vocab"),
        ({"model": {"vocab": 7}}, "vocab"),
    ],
    ids=range(9),
)
def test_what_a_tokenizer_can_say(change: dict[str, Any], words: str, folder: Path) -> None:
    edit(folder, "tokenizer.json", lambda content: content.update(change))
    code, told = answer(folder)
    assert code == UNREADABLE and words in told


def test_surrogates_in_a_vocabulary(folder: Path) -> None:
    edit(folder, "tokenizer.json", lambda content: content["model"]["vocab"].update({"\ud800": 77}))
    assert answer(folder)[0] == UNREADABLE


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "loop", "link out", "device", "huge"])
def test_what_lies_in_a_files_place(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(folder)  # A socket's path has at most 107 bytes.
            try:
                server.bind(name)
            finally:
                os.chdir(here)
    elif kind == "loop":
        path.symlink_to(name)
    elif kind == "link out":
        (tmp_path / "outside").write_text("{}")
        path.symlink_to(tmp_path / "outside")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    code, told = answer(folder)
    assert code == UNREADABLE and name in told


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({}, INCOMPLETE, "no weights"),
        ({"pytorch_model.bin": b"\x80"}, UNSUPPORTED, "pickled (pytorch_model.bin)"),
        ({"model.pt": b""}, UNSUPPORTED, "pickled"),
        ({"model.Q4.gguf": b"GGUF"}, UNSUPPORTED, "GGUF"),
        ({"weights.safetensors": b""}, INCOMPLETE, "weights.safetensors"),
        ({"model.safetensors.index.json": b"{}"}, UNREADABLE, "weight_map"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": 5}}'}, UNREADABLE, "weight_map"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../a.safetensors"}}'}, UNREADABLE, "../a"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}'}, INCOMPLETE, "b.safetensors"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "\\ud800.safetensors"}}'}, INCOMPLETE, "d800"),
    ],
    ids=range(10),
)
def test_folders_without_the_weights(files: dict[str, bytes], code: str, words: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    found = answer(folder)
    assert found[0] == code and words in found[1]


def test_the_files_that_are_loaded_are_the_ones_that_count(folder: Path) -> None:
    whole = inspect_model(folder).description.parameters
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert inspect_model(folder).description.parameters == whole
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    assert inspect_model(folder).description.parameters == whole


def test_tied_weights_count_once_and_masks_do_not(folder: Path) -> None:
    whole = inspect_model(folder).description.parameters
    edit(folder, "config.json", lambda content: content.update(tie_word_embeddings=True))
    assert inspect_model(folder).description.parameters == whole - 10 * 8
    shape = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    names = ("h.0.attn.c_attn.bias", "h.0.attn.bias", "h.0.attn.masked_bias", "layers.0.self_attn.rotary_emb.inv_freq")
    header = {name: {**shape, "data_offsets": [4 * place, 4 * place + 4]} for place, name in enumerate(names)}
    weights(folder, header, 16)
    assert inspect_model(folder).description.parameters == 1


def test_a_cache_of_links_within_its_root_is_read(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "root" / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(f"../blobs/{path.name}")
    assert inspect_model(folder, folder.parent).problems == ()
    assert answer(folder)[0] == "" and inspect_model(folder, folder).problems[0].code == UNREADABLE


def test_other_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert answer(tmp_path / "empty")[0] == INCOMPLETE
    assert "config.json" in answer(tmp_path / "empty")[1]
    assert answer(tmp_path / "nowhere")[0] == UNREADABLE
    full = tmp_path / "full"
    full.mkdir()
    for number in range(MOST_ENTRIES + 1):
        (full / str(number)).touch()
    assert answer(full) == (UNREADABLE, "the folder has more than 10,000 files")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("closed", ["", "config.json", "model.safetensors", "tokenizer.json"])
def test_what_may_not_be_read(closed: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        folder = write_model(Path(root), "model")
        (folder / closed).chmod(0)
        os.seteuid(65534)
        try:
            found = answer(folder)
        finally:
            os.seteuid(0)
        assert found[0] == UNREADABLE and "Permission denied" in found[1] and closed in found[1]


def test_a_template_has_a_length(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("x" * (2 << 20))
    assert answer(folder)[0] == UNREADABLE and "chat_template.jinja" in answer(folder)[1]


def test_an_adapter_beside_a_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert answer(folder)[0] == UNSUPPORTED


class TestAdapters:
    @pytest.fixture
    def adapter(self, tmp_path: Path) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "auto_mapping": null}')
        raw = json.dumps({"a": FLOATS}).encode()
        (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
        return folder

    def test_a_good_one(self, adapter: Path) -> None:
        assert inspect_adapter(adapter, adapter.parent).problems == ()

    @pytest.mark.parametrize(
        ("name", "content", "code", "words"),
        [
            ("adapter_config.json", b'{"peft_type": "IA3"}', "adapter_invalid", "IA3"),
            ("adapter_config.json", b"[]", "adapter_invalid", "not a JSON object"),
            ("adapter_config.json", b"{}", "adapter_invalid", "None"),
            ("adapter_config.json", b'{"peft_type": "LORA", "megatron_config": {"a": 1}}', UNSUPPORTED, "megatron"),
            ("adapter_config.json", b'{"peft_type": "LORA", "auto_map": {"a": "b.C"}}', UNSUPPORTED, "auto_map"),
            ("adapter_model.safetensors", POINTER, "adapter_invalid", "git lfs pull"),
            ("adapter_model.safetensors", b"\xff" * 80, "adapter_invalid", "not a safetensors file"),
            ("adapter_model.safetensors", None, INCOMPLETE, "no adapter_model.safetensors"),
            ("adapter_config.json", None, INCOMPLETE, "no adapter_config.json"),
        ],
        ids=range(9),
    )
    def test_what_can_be_wrong(self, name: str, content: bytes | None, code: str, words: str, adapter: Path) -> None:
        if content is None:
            (adapter / name).unlink()
        else:
            (adapter / name).write_bytes(content)
        found = inspect_adapter(adapter, adapter.parent)
        assert found.problems[0].code == code and words in found.told


def test_every_family_is_one_of_the_loaders(folder: Path) -> None:
    for family in FAMILIES:
        edit(folder, "config.json", lambda content, family=family: content.update(model_type=family))
        assert answer(folder)[0] == ""
