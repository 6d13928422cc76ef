"""Adapters train alone, start as the identity and leave no trace once merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from minillm_core.errors import UserError
from minillm_core.models.loading import load_causal_lm
from minillm_core.models.lora import add_lora, merge_adapter, merge_lora
from minillm_core.spec import LoraSpec
from tests.tiny_models import FAMILIES, write_tiny_model

IDS_BT = torch.arange(3, 33).reshape(2, 15)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS_BT).logits


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_train_and_merge(family: str, tmp_path: Path) -> None:
    model: PreTrainedModel = load_causal_lm(write_tiny_model(tmp_path / "m", family), torch.float32)
    before_BTV = logits(model)
    names = set(model.state_dict())
    adapted = add_lora(model, LoraSpec(rank=2, dropout=0.1)).eval()
    assert torch.equal(logits(adapted), before_BTV)
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    assert not any("lm_head" in name for name in trainable)
    adapted(input_ids=IDS_BT).logits.square().sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    shaken(adapted)
    trained_BTV = logits(adapted)
    assert (trained_BTV - before_BTV).abs().max() > 1e-2
    merged = merge_lora(adapted)
    assert isinstance(merged, PreTrainedModel) and set(merged.state_dict()) == names
    torch.testing.assert_close(logits(merged), trained_BTV, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_adapter_takes_the_models_dtype(tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path / "m"), torch.bfloat16)
    adapted = add_lora(model, LoraSpec(rank=2, target_modules=["q_proj"]))
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.bfloat16}
    assert all("q_proj" in name for name, p in adapted.named_parameters() if p.requires_grad)


def test_unknown_target(tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path / "m"), torch.float32)
    with pytest.raises(UserError) as caught:
        add_lora(model, LoraSpec(target_modules=["no_such_layer"]))
    assert (caught.value.code, caught.value.param) == ("invalid_value", "/student/lora/target_modules")


@pytest.mark.parametrize(("family", "target"), [("llama", "lm_head"), ("qwen2", "lm_head"), ("qwen2", "embed_tokens")])
def test_the_head_is_not_adapted(family: str, target: str, tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path / "m", family), torch.float32)
    with pytest.raises(UserError, match="output head"):
        add_lora(model, LoraSpec(target_modules=[target, "q_proj"]))


@pytest.mark.parametrize("extra", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}])
def test_a_teacher_adapter_on_a_tied_head_is_refused(extra: dict[str, list[str]], tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", "qwen2")
    config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **extra})
    get_peft_model(load_causal_lm(folder, torch.float32), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="tied to the head"):
        merge_adapter(load_causal_lm(folder, torch.float32), tmp_path / "adapter")


def test_teacher_adapter_is_merged(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    adapted = shaken(add_lora(load_causal_lm(folder, torch.float32), LoraSpec(rank=2)).eval())
    adapted.save_pretrained(tmp_path / "adapter")
    teacher = merge_adapter(load_causal_lm(folder, torch.float32), tmp_path / "adapter")
    torch.testing.assert_close(logits(teacher), logits(adapted), rtol=1e-4, atol=1e-4)
    assert isinstance(teacher, PreTrainedModel)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_target_without_a_layer_is_refused_beside_one_that_has(tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path / "m"), torch.float32)
    with pytest.raises(UserError, match=r"'v_porj', which is no layer of the model \(is 'v_proj' meant"):
        add_lora(model, LoraSpec(target_modules=["q_proj", "v_porj"]))


class TestAdaptersWithoutAPlace:
    @pytest.fixture
    def teacher(self, tmp_path: Path) -> Path:
        return write_tiny_model(tmp_path / "m")

    @pytest.fixture
    def adapter(self, teacher: Path, tmp_path: Path) -> Path:
        add_lora(load_causal_lm(teacher, torch.float32), LoraSpec(rank=2)).save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    def refused(self, teacher: Path, adapter: Path) -> str:
        with pytest.raises(UserError) as caught:
            merge_adapter(load_causal_lm(teacher, torch.float32), adapter)
        assert (caught.value.code, caught.value.param) == ("adapter_invalid", "/teacher/adapter")
        return caught.value.message

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ("base_model.model.model", "base_model.model._orig_mod.model", "_orig_mod"),
            (
                "base_model.model.model.layers.1",
                "base_model.model.module.model.layers.1",
                "no layer of the model takes",
            ),
            ("layers.1.", "layers.7.", "layers.7."),
            ("base_model.model.", "", "no layer of the model takes"),
            ("lora_B", "lora_magnitude", "lacks"),
        ],
    )
    def test_tensors(self, old: str, new: str, told: str, teacher: Path, adapter: Path) -> None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        renamed = {name.replace(old, new): tensor for name, tensor in tensors.items()}
        save_file(renamed, adapter / "adapter_model.safetensors")
        assert told in self.refused(teacher, adapter)

    def test_a_tensor_less(self, teacher: Path, adapter: Path) -> None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        left_out = sorted(tensors)[0]
        del tensors[left_out]
        save_file(tensors, adapter / "adapter_model.safetensors")
        assert f"lacks {left_out}" in self.refused(teacher, adapter)

    @pytest.mark.parametrize(
        ("config", "told"),
        [
            ({"target_modules": ["q_proj", "v_porj"]}, "v_porj"),
            ({"modules_to_save": ["norn"]}, "norn"),
            ({"alpha_pattern": {"q_porj": 4}}, "q_porj"),
            ({"rank_pattern": {"q_porj": 4}}, "q_porj"),
        ],
    )
    def test_config(self, config: dict[str, Any], told: str, teacher: Path, adapter: Path) -> None:
        content = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(content | config))
        assert told in self.refused(teacher, adapter)


def test_adapters_that_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    model = load_causal_lm(folder, torch.float32)
    with pytest.raises(UserError, match="no adapter_config"):
        merge_adapter(model, folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(UserError, match="IA3"):
        merge_adapter(model, adapter)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="no adapter_model"):
        merge_adapter(model, adapter)
    other = load_causal_lm(write_tiny_model(tmp_path / "wide", hidden=64), torch.float32)
    add_lora(other, LoraSpec(rank=2)).save_pretrained(adapter)
    with pytest.raises(UserError, match="does not fit") as caught:
        merge_adapter(model, adapter)
    assert (caught.value.code, caught.value.param) == ("adapter_invalid", "/teacher/adapter")
