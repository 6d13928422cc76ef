"""The last layer for chosen tokens gives their hidden states and all gradients as the whole layer does."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers import PreTrainedModel

from minillm_core.models.families import decoder_layers, enable_activation_checkpointing
from minillm_core.models.fast_layers import use_fast_layers
from minillm_core.models.last_layer import end_with_chosen_tokens
from minillm_core.models.loading import load_causal_lm
from minillm_core.models.packed import PackedRows, joined_hidden_states
from tests.tiny_models import write_tiny_model

LENGTHS = [9, 1, 14, 6]
CHOSEN = [3, 8, 9, 22, 23, 29, 28]
FUSED = ("llama", "mistral", "qwen2", "qwen3")


def outcome(model: PreTrainedModel, chosen: list[int] | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Hidden states of the chosen tokens (of all, then cut, where there is no choice), and gradients."""
    ids_N = torch.randint(0, 380, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    rows = PackedRows(LENGTHS, torch.device("cpu"))
    if chosen is None:
        hidden_ND = joined_hidden_states(model, ids_N, rows)[torch.tensor(CHOSEN)]
    else:
        hidden_ND = joined_hidden_states(model, ids_N, rows, torch.tensor(chosen, dtype=torch.long))
    model.zero_grad()
    hidden_ND.mul(torch.linspace(-1, 1, hidden_ND.numel()).view(hidden_ND.shape)).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return hidden_ND, found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("family", [*FUSED, "gpt2", "gemma2"])
def test_same_states_and_gradients(tmp_path: Path, family: str, fast: bool, checkpointing: bool) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path / "m", family, scale=3.0), torch.float32).requires_grad_(True)
    if fast:
        use_fast_layers(model)
    if checkpointing:
        enable_activation_checkpointing(model)
    expected, gradients = outcome(model, None)
    names = list(model.state_dict())
    assert end_with_chosen_tokens(model) == (family in FUSED)
    assert list(model.state_dict()) == names
    rows_seen = []
    layer = decoder_layers(model)[-1].mlp
    with mock.patch.object(
        layer, "forward", side_effect=lambda x, f=layer.forward: rows_seen.append(x.shape[1]) or f(x)
    ):
        found, others = outcome(model, CHOSEN)
    assert set(rows_seen) == {len(CHOSEN)} or family not in FUSED
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-4, msg=name)
    torch.testing.assert_close(outcome(model, None)[0], expected, rtol=1e-5, atol=2e-5)


def test_no_token_that_counts(tmp_path: Path) -> None:
    """A rank without any runs the model all the same, and its gradients are zero."""
    model = load_causal_lm(write_tiny_model(tmp_path / "m", "llama"), torch.float32).requires_grad_(True)
    end_with_chosen_tokens(model)
    hidden_ND, gradients = outcome(model, [])
    assert hidden_ND.shape == (0, model.config.hidden_size)
    assert gradients and all(not gradient.any() for gradient in gradients.values())
