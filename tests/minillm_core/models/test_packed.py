"""Packed rows give the hidden states and gradients that padded rows give, in every family that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from minillm_core.data.batching import pad_rows
from minillm_core.models import packed
from minillm_core.models.families import enable_activation_checkpointing, hidden_states
from minillm_core.models.loading import load_causal_lm
from minillm_core.models.packed import PackedRows, packable, packed_hidden_states
from minillm_core.native import ops
from tests.tiny_models import FAMILIES, write_tiny_model

LENGTHS = (23, 5, 14, 1, 14)


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family != "gemma2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return load_causal_lm(write_tiny_model(tmp_path_factory.mktemp("m"), request.param, scale=3.0), torch.float32)


@pytest.fixture(params=["kernels", "row_by_row", "all_rows"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every way through attention, whatever device this is."""
    if request.param == "kernels":
        yield request.param
        return
    monkeypatch.setattr(ops, "load", lambda: None)
    for name in ("_row_by_row", "_all_rows"):
        monkeypatch.setattr(packed, name, getattr(packed, f"_{request.param}"))
    yield request.param


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 380, (length,), generator=generator).tolist() for length in LENGTHS]


def from_padded(model: PreTrainedModel) -> torch.Tensor:
    batch = pad_rows(rows(), [[]] * len(LENGTHS), pad_id=2)
    hidden_BTD = hidden_states(model, batch.input_ids_BT, batch.attention_mask_BT, batch.position_ids_BT)
    return hidden_BTD[batch.attention_mask_BT.bool()]


def from_packed(model: PreTrainedModel) -> torch.Tensor:
    ids_N = torch.tensor([token for row in rows() for token in row])
    return packed_hidden_states(model, ids_N, PackedRows(LENGTHS, torch.device("cpu")))


def gradients(model: PreTrainedModel, hidden_ND: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    direction_ND = torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(1))
    (hidden_ND * direction_ND).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def same(model: PreTrainedModel) -> None:
    padded_ND, packed_ND = from_padded(model), from_packed(model)
    torch.testing.assert_close(packed_ND, padded_ND, rtol=1e-5, atol=2e-5)
    expected = {name: grad.clone() for name, grad in gradients(model, padded_ND).items()}
    found = gradients(model, packed_ND)
    assert expected.keys() == found.keys() and len(found) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_packed_is_padded(model: PreTrainedModel, way: str) -> None:
    assert packable(model)
    same(model)


@pytest.mark.parametrize("extra", [3, 70])
def test_tokens_that_fill_up_change_nothing(
    model: PreTrainedModel, way: str, extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    filled = PackedRows.filled
    monkeypatch.setattr(PackedRows, "filled", lambda rows, more: seen.append(more) or filled(rows, more))
    monkeypatch.setattr(packed, "padded_tokens", lambda tokens, dtype, device: tokens + extra)
    same(model)
    assert seen == [extra]
    assert filled(PackedRows((2, 5), torch.device("cpu")), 12).lengths == [2, 5, 5, 5, 2]


def test_layers_computed_again_in_the_backward_pass_know_their_rows(tmp_path: Path, way: str) -> None:
    for family in ("llama", "gpt2"):
        model = load_causal_lm(write_tiny_model(tmp_path / family, family, scale=3.0), torch.float32)
        enable_activation_checkpointing(model)
        same(model)


def test_every_layer_with_a_window_shorter_than_some_rows(tmp_path: Path, way: str) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path / "m", "mistral", scale=3.0), torch.float32)
    full_ND = from_padded(model)
    model.config.sliding_window = 6
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 6
    assert (from_padded(model) - full_ND).abs().max() > 1e-3
    same(model)


def test_attention_that_bends_its_scores_is_not_packable(tmp_path: Path) -> None:
    assert not packable(load_causal_lm(write_tiny_model(tmp_path / "m", "gemma2"), torch.float32))


def test_rows_that_are_left_aside_are_an_error(tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path / "m", "llama"), torch.float32)
    model.set_attn_implementation("eager")
    assert not packable(model)
    with pytest.raises(RuntimeError, match="packed rows"):
        from_packed(model)
