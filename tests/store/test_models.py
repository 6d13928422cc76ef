from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from store.bytes.model_folders import NotAModel, describe, tokenizer_fingerprint
from store.db.database import Database
from store.db.errors import NotFound
from store.models import ModelRepository

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "vocab_size": 8,
    "max_position_embeddings": 16,
    "dtype": "float32",
}
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}, "added_tokens": []}


def write(folder: Path, config: object = CONFIG) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    save_file({"w": np.zeros((8, 4), np.float32), "b": np.zeros(4, np.float32)}, folder / "model.safetensors")
    return folder


def test_describe(tmp_path: Path) -> None:
    model = describe(write(tmp_path / "m"))
    assert (model.architecture, model.causal_lm, model.parameters, model.layers) == ("LlamaForCausalLM", True, 36, 2)
    assert (model.vocab_size, model.context_length, model.dtype) == (8, 16, "float32")


@pytest.mark.parametrize(
    ("config", "causal", "layers"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "n_layer": 3, "n_positions": 9, "vocab_size": 5}, True, 3),
        ({"architectures": ["BertForMaskedLM"], "num_hidden_layers": 4, "vocab_size": 5}, False, 4),
        ({"architectures": ["Gemma3ForCausalLM"], "text_config": {"num_hidden_layers": 6}}, True, 6),
        ({"architectures": "nonsense", "num_hidden_layers": "many"}, False, 0),
    ],
)
def test_other_configs(tmp_path: Path, config: object, causal: bool, layers: int) -> None:
    model = describe(write(tmp_path / "m", config))
    assert (model.causal_lm, model.layers) == (causal, layers)


def test_fingerprint_is_that_of_the_ids(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    first = tokenizer_fingerprint(folder)
    same = {**TOKENIZER, "truncation": {"max_length": 3}, "model": {**TOKENIZER["model"], "merges": [["a", "b"]]}}  # type: ignore[dict-item]
    (folder / "tokenizer.json").write_text(json.dumps(same))
    assert tokenizer_fingerprint(folder) == first
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 1, "b": 0}}}))
    assert tokenizer_fingerprint(folder) != first
    assert tokenizer_fingerprint(tmp_path) is None


@pytest.mark.parametrize("damage", ["no config", "no weights", "cut", "garbage", "huge header", "not an object"])
def test_unreadable_folders(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path / "m")
    weights = folder / "model.safetensors"
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "not an object":
        (folder / "config.json").write_text("[1]")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "garbage":
        weights.write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00{[[[[")
    else:
        weights.write_bytes(b"\xff" * 64)
    with pytest.raises(NotAModel):
        describe(folder)


def test_scan(database: Database, tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / ".hidden")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "one")
    with database.write() as session:
        models = ModelRepository(session)
        (one,) = models.scan(tmp_path)
        assert (one.reference, one.path, one.kind, one.parameters) == ("path:one", "one", "base", 36)
        assert models.scan(tmp_path)[0].id == one.id
        assert models.get("anyone", "path:one") is models.get("anyone", one.id)
        (tmp_path / "one").rename(tmp_path / "two")
        (tmp_path / "link").unlink()
        assert [model.reference for model in models.scan(tmp_path)] == ["path:two"]
        with pytest.raises(NotFound):
            models.get("anyone", "path:one")
        assert [model.name for model in models.list("anyone", kind="base").items] == ["two"]
