"""References lead to folders, folders to models, and what cannot be used is refused by name."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.normalizers import Lowercase

from minillm_core.errors import UserError
from minillm_core.models import loading
from minillm_core.models.loading import (
    check_same_tokenizer,
    load_causal_lm,
    load_tokenizer,
    resolve,
    shared_vocab,
)
from minillm_core.rollout.decoder import make_decoder
from minillm_core.spec import RunContext
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", padded_vocab=400)


def changed(folder: Path, source: Path, **config: Any) -> Path:
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings = json.loads((folder / "config.json").read_text())
    settings.update(config)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


class TestResolve:
    def test_the_context_decides(self, tiny: Path, tmp_path: Path) -> None:
        context = RunContext(models={"path:any": str(tiny), "model_1": str(tiny)})
        assert resolve("path:any", None, context, tmp_path) == tiny
        assert resolve("model_1", None, context, tmp_path) == tiny

    def test_by_hand_against_the_run_folder(self, tiny: Path, tmp_path: Path) -> None:
        changed(tmp_path / "mine", tiny)
        assert resolve("path:mine", None, RunContext(), tmp_path) == tmp_path / "mine"
        assert resolve(f"path:{tiny}", None, RunContext(), tmp_path) == tiny

    @pytest.mark.parametrize("reference", ["path:nowhere", "model_unknown"])
    def test_not_there(self, reference: str, tmp_path: Path) -> None:
        with pytest.raises(UserError) as caught:
            resolve(reference, None, RunContext(), tmp_path, param="/student/model")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "/student/model")


class TestHub:
    @pytest.fixture
    def silent(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """A hub that takes the connection and never says a word."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
            monkeypatch.setattr(loading, "HUB_TIMEOUT_SECONDS", 0.3)
            yield

    def cache(self, folder: Path, tiny: Path) -> RunContext:
        repository = folder / "models--someone--model"
        commit = "0" * 40
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots").mkdir()
        changed(repository / "snapshots" / commit, tiny)
        return RunContext(hub_cache=str(folder))

    @pytest.mark.usefixtures("silent")
    def test_a_hub_that_does_not_answer_is_no_hang(self, tmp_path: Path) -> None:
        started = time.monotonic()
        with pytest.raises(UserError, match="does not answer") as caught:
            resolve("hub:someone/model", None, RunContext(hub_cache=str(tmp_path)), tmp_path)
        assert time.monotonic() - started < 20
        assert (caught.value.code, caught.value.param) == ("model_unavailable", "/teacher/model")
        assert caught.value.retryable

    def test_a_hub_that_refuses_the_connection(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(UserError, match="does not answer"):
            resolve("hub:someone/model", None, RunContext(hub_cache=str(tmp_path)), tmp_path)

    @pytest.mark.usefixtures("silent")
    def test_what_was_downloaded_is_used_without_a_hub(self, tiny: Path, tmp_path: Path) -> None:
        folder = resolve("hub:someone/model", None, self.cache(tmp_path, tiny), tmp_path)
        assert load_causal_lm(folder, torch.float32).config.vocab_size == 400

    def test_switched_off(self, tmp_path: Path) -> None:
        context = RunContext(hub_cache=str(tmp_path), hub_offline=True)
        with pytest.raises(UserError, match="switched off") as caught:
            resolve("hub:someone/model", "v1", context, tmp_path)
        assert caught.value.code == "model_unavailable" and not caught.value.retryable


class TestLoad:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_dtype_and_mode(self, tiny: Path, dtype: torch.dtype) -> None:
        model = load_causal_lm(tiny, dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert not model.training and model.config._attn_implementation == "sdpa"

    @pytest.mark.parametrize(
        ("config", "code"),
        [
            ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "unsupported_model"),
            ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "not_a_causal_lm"),
            ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "not_a_causal_lm"),
            ({"architectures": None}, "not_a_causal_lm"),
            ({"architectures": ["BloomForCausalLM"], "model_type": "bloom"}, "unsupported_model"),
            ({"quantization_config": {"quant_method": "awq"}}, "unsupported_model"),
            ({"num_hidden_layers": 3}, "unsupported_model"),
            ({"vocab_size": 500}, "unsupported_model"),
        ],
    )
    def test_configs_that_are_refused(self, config: dict[str, Any], code: str, tiny: Path, tmp_path: Path) -> None:
        folder = changed(tmp_path / "m", tiny, **config)
        with pytest.raises(UserError) as caught:
            load_causal_lm(folder, torch.float32, param="/student/model")
        assert (caught.value.code, caught.value.param) == (code, "/student/model")

    def test_a_missing_tensor_is_no_random_tensor(self, tiny: Path, tmp_path: Path) -> None:
        folder = changed(tmp_path / "m", tiny)
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"lack 1 tensors, such as model\.layers\.1\.mlp\.up_proj\.weight"):
            load_causal_lm(folder, torch.float32)

    def test_broken_and_pickled_weights(self, tiny: Path, tmp_path: Path) -> None:
        folder = changed(tmp_path / "m", tiny)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        with pytest.raises(UserError, match="cut short"):
            load_causal_lm(folder, torch.float32)
        weights.rename(folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="pickled"):
            load_causal_lm(folder, torch.float32)

    def test_no_config_no_tokenizer(self, tiny: Path, tmp_path: Path) -> None:
        folder = changed(tmp_path / "m", tiny)
        (folder / "tokenizer.json").write_text("{")
        with pytest.raises(UserError, match="no readable tokenizer"):
            load_tokenizer(folder)
        (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
        with pytest.raises(UserError, match="code of its own"):
            resolve(f"path:{folder}", None, RunContext(), tmp_path)
        (folder / "config.json").write_text("[]")
        with pytest.raises(UserError, match="not a JSON object"):
            load_causal_lm(folder, torch.float32)

    def test_only_what_the_family_knows_is_taken(self, tiny: Path, tmp_path: Path) -> None:
        plain = load_causal_lm(tiny, torch.float32).config.to_dict()
        del plain["_name_or_path"]
        asked = {
            "_attn_implementation": "flash_attention_2",
            "_attn_implementation_internal": "eager",
            "attn_implementation": "eager",
            "transformers_weights": "other.safetensors",
            "extra_files": ["../x.safetensors"],
            "per_layer_config": {"0": {"hidden_size": 8}},
            "nobody_knows": [1],
        }
        model = load_causal_lm(changed(tmp_path / "m", tiny, **asked), torch.float32)
        assert model.config._attn_implementation == "sdpa"
        assert {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"} == plain

    @pytest.mark.parametrize("implementation", [{}, {"_attn_implementation": "flash_attention_2"}])
    def test_gemma_2_without_soft_caps(self, implementation: dict[str, str], tmp_path: Path) -> None:
        source = write_tiny_model(tmp_path / "source", "gemma2")
        caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
        model = load_causal_lm(changed(tmp_path / "m", source, **caps, **implementation), torch.float32)
        ids_BT = torch.arange(3, 13)[None]
        capped = load_causal_lm(source, torch.float32)
        with torch.no_grad():
            assert not torch.equal(model(input_ids=ids_BT).logits, capped(input_ids=ids_BT).logits)
        decoder = make_decoder(model)
        decoder.release()

    @pytest.mark.parametrize("config", [{"rms_norm_eps": "small"}, {"hidden_act": 5}, {"rope_parameters": [1]}])
    def test_values_that_the_family_does_not_take(self, config: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError) as caught:
            load_causal_lm(changed(tmp_path / "m", tiny, **config), torch.float32)
        assert caught.value.code == "unsupported_model"


class TestTokenizers:
    def test_roles_and_templates_do_not_count(self) -> None:
        base = tiny_tokenizer(chat_template=None)
        base.eos_token = "<|start|>"
        check_same_tokenizer(base, tiny_tokenizer(chat_template=CHAT_TEMPLATE))

    def test_other_tokens(self) -> None:
        with pytest.raises(UserError, match="tokens differ in their id") as caught:
            check_same_tokenizer(tiny_tokenizer(384), tiny_tokenizer(300))
        assert (caught.value.code, caught.value.param) == ("tokenizer_mismatch", "/student/model")

    def test_other_cuts(self) -> None:
        lower = tiny_tokenizer()
        lower.backend_tokenizer.normalizer = Lowercase()
        with pytest.raises(UserError, match="cut texts differently"):
            check_same_tokenizer(tiny_tokenizer(), lower)

    def test_shared_vocab_is_the_real_one(self, tiny: Path, tmp_path: Path) -> None:
        tokenizer = load_tokenizer(tiny)
        wide = load_causal_lm(tiny, torch.float32).config
        wider = load_causal_lm(write_tiny_model(tmp_path / "m", padded_vocab=416), torch.float32).config
        assert shared_vocab(tokenizer, wide, wider) == 384
        wider.vocab_size = 380
        assert shared_vocab(tokenizer, wide, wider) == 380
