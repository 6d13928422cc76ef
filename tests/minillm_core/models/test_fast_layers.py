"""The replaced layers compute what the families' own do, forward and backward."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from minillm_core.models.families import hidden_states
from minillm_core.models.fast_layers import use_fast_layers
from minillm_core.models.loading import load_causal_lm
from minillm_core.models.lora import add_lora
from minillm_core.objectives import products
from minillm_core.spec import LoraSpec
from tests.tiny_models import FAMILIES, write_tiny_model

pytestmark = [
    pytest.mark.skipif(not products.onednn_available(), reason="this torch has no oneDNN"),
    pytest.mark.usefixtures("kernels"),
]


@pytest.fixture(autouse=True, params=[True, False], ids=["onednn", "mkl"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether products go to oneDNN and kernels, or all to MKL, whatever this processor would choose."""
    for decision in ("onednn_pays", "kernels_pay"):
        monkeypatch.setattr(products, decision, lambda: request.param)
    return bool(request.param)


def load(folder: Path, family: str) -> PreTrainedModel:
    return load_causal_lm(write_tiny_model(folder, family, scale=3.0), torch.float32).requires_grad_(True)


def outcome(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids_BT = torch.randint(0, 380, (3, 17), generator=torch.Generator().manual_seed(0))
    hidden_BTD = hidden_states(model, ids_BT, torch.ones_like(ids_BT))
    model.zero_grad()
    hidden_BTD.mul(torch.linspace(-1, 1, hidden_BTD.numel()).view(hidden_BTD.shape)).sum().backward()
    return hidden_BTD, {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def compare(plain: torch.nn.Module, fast: torch.nn.Module) -> None:
    (expected, gradients), (found, others) = outcome(plain), outcome(fast)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    assert gradients.keys() == others.keys() and len(others) > 3
    for name, gradient in gradients.items():
        difference = float((others[name] - gradient).norm() / gradient.norm().clamp(min=1e-3))
        assert difference < 1e-4, (name, difference)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str, library: bool) -> None:
    plain = load(tmp_path / "m", family)
    fast = copy.deepcopy(plain)
    # Two layers of two norms, attention and a gated one each, and the last norm;
    # with oneDNN seven linear ones each and the head.
    expected = {"llama": 9, "mistral": 9, "qwen2": 9, "qwen3": 13}.get(family)
    if expected is not None and library:
        expected += 15
    assert expected is None or use_fast_layers(copy.deepcopy(plain)) == expected
    use_fast_layers(fast)
    assert use_fast_layers(fast) == 0
    assert list(fast.state_dict()) == list(plain.state_dict())
    compare(plain, fast)
    compare(plain, copy.deepcopy(fast))
    with torch.no_grad():
        ids_BT = torch.arange(9).unsqueeze(0)
        torch.testing.assert_close(fast(ids_BT).logits, plain(ids_BT).logits, rtol=1e-5, atol=2e-5)


def test_adapters_stay_in_the_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = add_lora(load(tmp_path / "m", "llama"), LoraSpec(rank=2))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    fast = copy.deepcopy(plain)
    assert use_fast_layers(fast) > 0
    compare(plain, fast)


def test_half_precision_is_left_to_the_family(tmp_path: Path) -> None:
    plain = load(tmp_path / "m", "llama").bfloat16()
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    ids_BT = torch.arange(9).unsqueeze(0)
    assert torch.equal(fast(ids_BT).logits, plain(ids_BT).logits)
