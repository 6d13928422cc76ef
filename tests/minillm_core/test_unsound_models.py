"""Models that cannot be used as they are: refused by name before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from minillm_core.errors import UserError
from tests.minillm_core.test_run import METHODS
from tests.minillm_core.tiny_runs import events, losses, of_type, run_here, write_run
from tests.tiny_models import write_tiny_model

OTHER = {"prune_teacher": None, "model": "path:other"}
SFT = {"max_steps": 2, "rows_per_step": 8}


def refused(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        run_here(folder)
    assert not of_type(events(folder), "metrics"), "nothing was trained"
    return caught.value


def damage(folder: Path, name: str, value: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[5] = value
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not Ellipsis}))


class TestNotFinite:
    @pytest.mark.parametrize("method", ["sft", "kd", "seqkd", "gkd", "minillm"])
    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_a_teacher(self, tmp_path: Path, method: str, value: float) -> None:
        folder = write_run(tmp_path, method=METHODS[method])
        damage(folder / "teacher", "model.layers.1.mlp.up_proj.weight", value)
        error = refused(folder)
        assert (error.code, error.param) == ("model_not_finite", "/teacher/model")
        assert "model.layers.1.mlp.up_proj.weight" in error.message

    def test_a_student_before_its_teacher_is_trained(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path, student=OTHER, training={"teacher_sft": SFT})
        write_tiny_model(folder / "other", seed=1)
        damage(folder / "other", "model.norm.weight", float("inf"))
        error = refused(folder)
        assert (error.code, error.param) == ("model_not_finite", "/student/model")

    def test_finite_weights_whose_answers_are_not(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path)
        path = folder / "teacher" / "model.safetensors"
        tensors = load_file(path)
        tensors["lm_head.weight"] *= 1e37
        tensors["model.norm.weight"] *= 1e10
        save_file(tensors, path, metadata={"format": "pt"})
        error = refused(folder)
        assert error.code == "model_not_finite" and "log-probabilities" in error.message


class TestTokensBeyondTheEmbedding:
    def run_with(self, tmp_path: Path, text: str) -> Path:
        folder = write_run(tmp_path, student=OTHER)
        write_tiny_model(folder / "other", seed=1)
        for name in ("teacher", "other"):
            tokenizer = AutoTokenizer.from_pretrained(folder / name)
            tokenizer.add_tokens(["<think>"])
            tokenizer.save_pretrained(folder / name)
        rows = [{"prompt": f"question {index}", "response": text} for index in range(20)]
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder

    def test_in_use_are_told_with_tokenizer_id_and_width(self, tmp_path: Path) -> None:
        error = refused(self.run_with(tmp_path, "<think> hm"))
        assert (error.code, error.param) == ("token_without_embedding", "/teacher/model")
        assert all(part in error.message for part in ("'<think>'", "id 384", "384 rows", "385 tokens"))

    def test_not_in_use_are_left_alone(self, tmp_path: Path) -> None:
        assert of_type(run_here(self.run_with(tmp_path, "no such thing")), "student")

    def test_of_a_student_with_the_narrower_embedding(self, tmp_path: Path) -> None:
        folder = self.run_with(tmp_path, "<think> hm")
        write_tiny_model(tmp_path / "wide", layers=4, padded_vocab=400)
        for name in ("model.safetensors", "config.json"):
            (folder / "teacher" / name).write_bytes((tmp_path / "wide" / name).read_bytes())
        assert refused(folder).param == "/student/model"


BESIDE_TEACHER_SFT: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "a target that is no layer": (
        {"student": {"lora": {"target_modules": ["nothing"]}}},
        {},
        "invalid_value",
        "/student/lora/target_modules",
    ),
    "a target that is no layer, of another model": (
        {"student": {**OTHER, "lora": {"target_modules": ["nothing"]}}},
        {},
        "invalid_value",
        "/student/lora/target_modules",
    ),
    "too many layers": (
        {"student": {"prune_teacher": {"layers": 9}}},
        {},
        "too_many_layers",
        "/student/prune_teacher/layers",
    ),
    "an unsupported student": ({"student": OTHER}, {"model_type": "mamba"}, "unsupported_model", "/student/model"),
    "no attention heads": ({"student": OTHER}, {"num_attention_heads": 0}, "", "/student/model"),
    "heads that are a text": ({"student": OTHER}, {"num_attention_heads": "4"}, "", "/student/model"),
    "a width that is a list": ({"student": OTHER}, {"intermediate_size": [64]}, "", "/student/model"),
    "a rope that is a number": ({"student": OTHER}, {"rope_parameters": 3}, "", "/student/model"),
    "an activation that is none": ({"student": OTHER}, {"hidden_act": "none_such"}, "", "/student/model"),
    "an epsilon that is a text": ({"student": OTHER}, {"rms_norm_eps": "small"}, "", "/student/model"),
    "no context": ({"student": OTHER}, {"max_position_embeddings": None}, "", "/student/model"),
}


@pytest.mark.parametrize("name", BESIDE_TEACHER_SFT)
def test_refused_before_the_teacher_is_trained(tmp_path: Path, name: str) -> None:
    changes, config, code, param = BESIDE_TEACHER_SFT[name]
    folder = write_run(tmp_path, training={"teacher_sft": SFT}, **changes)
    write_tiny_model(folder / "other", seed=1)
    change_config(folder / "other", **config)
    error = refused(folder)
    assert error.param == param
    assert not code or error.code == code
    assert [event["phase"] for event in of_type(events(folder), "phase")] == ["validating"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_a_config_without_a_context_has_its_family_s(tmp_path: Path, family: str) -> None:
    folder = write_run(tmp_path, family=family, student=OTHER, training={"max_steps": 1})
    write_tiny_model(folder / "other", family, seed=1)
    change_config(folder / "other", max_position_embeddings=..., n_positions=...)
    if family == "gpt2":
        assert refused(folder).param == "/student/model"  # its positions are weights: they no longer fit
    else:
        assert of_type(run_here(folder), "student")


class TestTiedFlagBesideAnotherHead:
    @pytest.mark.parametrize("family", ["llama", "qwen2"])
    @pytest.mark.parametrize("kind", ["pruned", "other"])
    def test_the_weights_decide(self, tmp_path: Path, family: str, kind: str) -> None:
        student = {"prune_teacher": {"layers": 4}} if kind == "pruned" else OTHER
        settings = {"max_steps": 1, "learning_rate": 1e-9}
        folder = write_run(tmp_path, family=family, student=student, method={"type": "sft"}, training=settings)
        write_tiny_model(folder / "other", family, layers=2, seed=1)
        source = folder / ("teacher" if kind == "pruned" else "other")
        tensors = load_file(source / "model.safetensors")
        torch.manual_seed(4)
        tensors["lm_head.weight"] = torch.randn_like(tensors["model.embed_tokens.weight"])
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
        change_config(source, tie_word_embeddings=True)
        run_here(folder)
        exported = load_file(folder / "student" / "model.safetensors")
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            assert torch.allclose(exported[name], tensors[name], atol=1e-6)
        model = AutoModelForCausalLM.from_pretrained(folder / "student")
        assert model.config.tie_word_embeddings is False
        assert torch.allclose(model.lm_head.weight, tensors["lm_head.weight"], atol=1e-6)


@pytest.mark.parametrize("no_repeat_ngram_size", [0, 6])
def test_a_model_s_settings_for_generation_act_on_nothing(tmp_path: Path, no_repeat_ngram_size: int) -> None:
    settings = {
        "repetition_penalty": 5.0,
        "do_sample": False,
        "temperature": 0.1,
        "top_k": 1,
        "min_new_tokens": 9,
        "suppress_tokens": list(range(40, 200)),
        "no_repeat_ngram_size": 1,
        "bad_words_ids": [[70]],
        "forced_eos_token_id": 2,
        "eos_token_id": 80,
    }
    found = []
    for kind in ("plain", "with"):
        folder = write_run(
            tmp_path / kind, training={"max_steps": 2}, evaluation={"no_repeat_ngram_size": no_repeat_ngram_size}
        )
        if kind == "with":
            (folder / "teacher" / "generation_config.json").write_text(json.dumps(settings))
        ran = run_here(folder)
        report = of_type(ran, "student")[0]["report"]
        found.append((losses(ran), report["before"], report["after"], report["teacher"], report["samples"]))
    assert found[0] == found[1]
