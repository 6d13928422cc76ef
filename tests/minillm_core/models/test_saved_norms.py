"""Outputs of norms that are computed again leave the gradients as they were, to the last bit."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from minillm_core.models import saved_norms
from minillm_core.models.families import enable_activation_checkpointing
from minillm_core.models.fast_layers import use_fast_layers
from minillm_core.models.loading import load_causal_lm
from minillm_core.models.lora import add_lora
from minillm_core.models.packed import PackedRows, packed_hidden_states
from minillm_core.models.saved_norms import NormsComputedAgain, note
from minillm_core.native import ops
from minillm_core.native.library import load
from minillm_core.spec import LoraSpec
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.skipif(load() is None, reason="no C++ compiler here")

LENGTHS = (9, 4, 17)


def fast_model(folder: Path, family: str) -> PreTrainedModel:
    model = load_causal_lm(write_tiny_model(folder, family, scale=3.0), torch.float32).requires_grad_(True)
    use_fast_layers(model)
    return model


def hidden(model: torch.nn.Module, around: AbstractContextManager[None]) -> torch.Tensor:
    ids_N = torch.randint(0, 380, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    with around:
        return packed_hidden_states(model, ids_N, PackedRows(LENGTHS, torch.device("cpu")))


def gradients(model: torch.nn.Module, hidden_ND: torch.Tensor, *, keep: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad()
    direction_ND = torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(1))
    (hidden_ND * direction_ND).sum().backward(retain_graph=keep)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def compare(model: torch.nn.Module) -> None:
    expected = gradients(model, hidden(model, nullcontext()))
    kept = hidden(model, NormsComputedAgain())
    for found in (gradients(model, kept, keep=True), gradients(model, kept)):
        assert expected.keys() == found.keys() and len(found) > 3
        for name, gradient in expected.items():
            assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_gradients_are_the_same(tmp_path: Path, family: str) -> None:
    compare(fast_model(tmp_path / "m", family))


def test_with_adapters_and_with_layers_computed_again(tmp_path: Path) -> None:
    adapted = add_lora(
        load_causal_lm(write_tiny_model(tmp_path / "m", "llama", scale=3.0), torch.float32), LoraSpec(rank=2)
    )
    use_fast_layers(adapted)
    compare(adapted)
    model = fast_model(tmp_path / "again", "llama")
    enable_activation_checkpointing(model)
    compare(model)


def test_what_a_layer_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each layer the inputs of query, key, value and of the gated layer; the last norm's output is not saved."""
    packed: list[object] = []
    pack = NormsComputedAgain._pack

    def counted(self: NormsComputedAgain, saved: torch.Tensor) -> object:
        packed.append(pack(self, saved))
        return packed[-1]

    monkeypatch.setattr(NormsComputedAgain, "_pack", counted)
    model = fast_model(tmp_path / "m", "qwen3")
    hidden(model, NormsComputedAgain())
    again = [what for what in packed if isinstance(what, saved_norms._Again)]
    layers = model.config.num_hidden_layers
    assert len(again) == 4 * layers and len({what.x.data_ptr() for what in again}) == 2 * layers


def test_only_the_newest_output_is_known_and_only_while_it_lives() -> None:
    x, weight = torch.randn(3, 8), torch.ones(8)
    first, second = (ops.norm(x, weight, 1e-6)[0] for _ in range(2))
    with NormsComputedAgain() as entered:
        assert entered is None
        current = saved_norms._ACTIVE.passes[-1]
        note(first, x, weight, 1e-6)
        assert isinstance(current._pack(first[:]), saved_norms._Again)
        note(second, x, weight, 1e-6)
        assert current._pack(first) is first
        assert current._pack(second[1:]).shape == (2, 8) and current._pack(second.t()).shape == (8, 3)
        place = second.detach()  # what autograd hands over: the same memory, another object
        assert isinstance(current._pack(place), saved_norms._Again)
        del second
        assert current._pack(place) is place
    note(first, x, weight, 1e-6)
    assert not saved_norms._ACTIVE.passes and current.newest is None
