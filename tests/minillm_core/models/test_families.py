"""Every family: its parts give exactly what the whole model gives, wherever the padding is.

Axes: B rows, T positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from minillm_core.data.batching import pad_rows
from minillm_core.models import families
from minillm_core.models.loading import load_causal_lm, load_tokenizer
from minillm_core.models.lora import add_lora
from minillm_core.spec import LoraSpec
from tests.tiny_models import FAMILIES, write_tiny_model

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), request.param, padded_vocab=400, scale=3.0)
    return load_causal_lm(folder, torch.float32)


def rows(count: int = 4) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = (23, 5, 14, 1)[:count]
    return [torch.randint(0, 380, (length,), generator=generator).tolist() for length in lengths]


def test_decoder_and_head_are_the_model(model: PreTrainedModel) -> None:
    batch = pad_rows(rows(), [[]] * 4, pad_id=2)
    with torch.no_grad():
        logits_BTV = model(
            input_ids=batch.input_ids_BT,
            attention_mask=batch.attention_mask_BT,
            position_ids=batch.position_ids_BT,
        ).logits
        hidden_BTD = families.hidden_states(model, batch.input_ids_BT, batch.attention_mask_BT)
        head = families.output_head(model)
        assert torch.equal(head.logits(hidden_BTD), logits_BTV)
        cut_BTV = head.cut(384).logits(hidden_BTD)
    torch.testing.assert_close(cut_BTV, logits_BTV[..., :384], rtol=0, atol=TOLERANCE)
    assert hidden_BTD.shape[-1] == families.output_head(model).weight_VD.shape[1]
    assert logits_BTV.shape[-1] == families.vocab_size(model) == 400


def test_the_default_positions_of_a_single_row_are_ours(model: PreTrainedModel) -> None:
    """Rows without padding need no help: what we give explicitly is what the family means."""
    input_ids_BT = torch.tensor(rows(1))
    with torch.no_grad():
        alone_BTV = model(input_ids=input_ids_BT).logits
        hidden_BTD = families.hidden_states(model, input_ids_BT, torch.ones_like(input_ids_BT))
        ours_BTV = families.output_head(model).logits(hidden_BTD)
    torch.testing.assert_close(ours_BTV, alone_BTV, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_id", [2, 17])
def test_padding_changes_no_hidden_state(model: PreTrainedModel, side: str, pad_id: int) -> None:
    batch = pad_rows(rows(), [[]] * 4, pad_id=pad_id, side=side)
    with torch.no_grad():
        padded_BTD = families.hidden_states(model, batch.input_ids_BT, batch.attention_mask_BT, batch.position_ids_BT)
        for index, row in enumerate(rows()):
            ids_BT = torch.tensor([row])
            alone_TD = families.hidden_states(model, ids_BT, torch.ones_like(ids_BT))[0]
            there = batch.attention_mask_BT[index].bool()
            torch.testing.assert_close(padded_BTD[index][there], alone_TD, rtol=TOLERANCE, atol=TOLERANCE)


def test_softcap_bends_the_logits(tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path / "m", "gemma2", scale=3.0), torch.float32)
    head = families.output_head(model)
    assert head.softcap == 2.0
    hidden_ND = torch.randn(5, families.output_head(model).weight_VD.shape[1]) * 4
    assert (head.logits(hidden_ND) - head._replace(softcap=None).logits(hidden_ND)).abs().max() > 0.5
    assert model.config._attn_implementation == "eager"


def test_layers(model: PreTrainedModel) -> None:
    assert len(families.decoder_layers(model)) == 2
    assert families.context_length(model.config) == 256
    stack = families.layers_name(model)
    assert any(name.startswith(f"{stack}.1.") for name in model.state_dict())


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    ids_BT = torch.tensor(rows(1))
    families.hidden_states(model, ids_BT, torch.ones_like(ids_BT)).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_checkpointing_recomputes_in_evaluation_mode_and_changes_nothing(model: PreTrainedModel) -> None:
    plain = copy.deepcopy(model)
    recomputing = copy.deepcopy(model)
    families.enable_activation_checkpointing(recomputing)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    # A module inside of the layer runs again in the backward pass; the layer's own hooks do not.
    inner = next(module for module in families.decoder_layers(recomputing)[0].children())
    inner.register_forward_hook(count)
    expected, found = gradients(plain), gradients(recomputing)
    assert not recomputing.training and calls == 2
    assert expected.keys() == found.keys() and len(found) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    calls = 0
    ids_BT = torch.tensor(rows(1))
    with torch.no_grad():
        recomputing(input_ids=ids_BT, use_cache=True)
    # With gradients and a cache, recomputing would write the cache twice.
    recomputing(input_ids=ids_BT, use_cache=True).logits.sum().backward()
    assert calls == 2


def test_without_dropout_training_mode_is_evaluation_mode(model: PreTrainedModel) -> None:
    trained = copy.deepcopy(model)
    for module in trained.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        for name in ("attention_dropout", "dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    ids_BT = torch.tensor(rows(1))
    mask_BT = torch.ones_like(ids_BT)
    expected_BTD = families.hidden_states(model, ids_BT, mask_BT)
    trained.train()
    assert not torch.allclose(families.hidden_states(trained, ids_BT, mask_BT), expected_BTD)
    families.disable_dropout(trained)
    assert torch.equal(families.hidden_states(trained, ids_BT, mask_BT), expected_BTD)


def test_parts_of_a_lora_model_have_the_adapter(model: PreTrainedModel) -> None:
    ids_BT = torch.tensor(rows(1))
    mask_BT = torch.ones_like(ids_BT)
    adapted = add_lora(copy.deepcopy(model), LoraSpec(rank=2)).eval()
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        ours_BTV = families.output_head(adapted).logits(families.hidden_states(adapted, ids_BT, mask_BT))
        theirs_BTV = adapted(input_ids=ids_BT, attention_mask=mask_BT).logits
        before_BTD = families.hidden_states(model, ids_BT, mask_BT)
    torch.testing.assert_close(ours_BTV, theirs_BTV, rtol=0, atol=TOLERANCE)
    assert not torch.allclose(families.hidden_states(adapted, ids_BT, mask_BT), before_BTD, atol=1e-3)
    assert len(families.decoder_layers(adapted)) == 2


def test_casting_leaves_the_rotary_frequencies(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", "llama", hidden=64)
    model = load_causal_lm(folder, torch.float32)
    before = model.model.rotary_emb.inv_freq.clone()
    families.cast_parameters(model, torch.bfloat16)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    loaded = load_causal_lm(folder, torch.bfloat16)
    for (name, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    ids_BT = torch.tensor(rows(1))
    mask_BT = torch.ones_like(ids_BT)
    assert torch.equal(families.hidden_states(model, ids_BT, mask_BT), families.hidden_states(loaded, ids_BT, mask_BT))
    assert not torch.equal(model.to(torch.bfloat16).model.rotary_emb.inv_freq.float(), before)


def test_the_chat_template_survives(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_model(tmp_path / "m"))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert tokenizer.eos_token in text
