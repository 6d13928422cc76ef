"""Every decoder against the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from minillm_core.rollout import fused
from minillm_core.rollout.decoder import Decoder, make_decoder
from minillm_core.rollout.fused import FusedDecoder
from minillm_core.rollout.generic import TransformersDecoder
from minillm_core.rollout.packing import padded
from minillm_core.rollout.projection import widens

pytestmark = pytest.mark.usefixtures("kernels")

FUSED = ("llama", "llama3_rope", "mistral", "qwen2", "qwen3")
GENERIC = ("gpt2", "opt", "gemma", "gemma2", "gemma3")
VOCAB = 40
Make = Callable[..., PreTrainedModel]


def _forward(model: PreTrainedModel, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and final hidden states of one row alone."""
    with torch.no_grad():
        ids = torch.tensor([tokens])
        hidden = getattr(model, model.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state
        return model(input_ids=ids, use_cache=False).logits[0], hidden[0]


def _feed(decoder: Decoder, prompts: list[list[int]], rest: list[list[int]], sizes: list[int]) -> torch.Tensor:
    """Hidden states (B, 1 + columns, D) from the last prompt column on; ``sizes``: 1 is a step, more a chunk."""
    longest = max(map(len, prompts))
    decoder.start(len(prompts), longest + sum(sizes))
    first = [longest - len(prompt) for prompt in prompts]
    parts = [decoder.chunk(padded(prompts, decoder.device, left=True), first, [longest] * len(prompts))[:, -1:]]
    tokens = torch.tensor(rest)
    begin = 0
    for size in sizes:
        piece = tokens[:, begin : begin + size]
        if size == 1:
            parts.append(decoder.step(piece[:, 0]).unsqueeze(1))
        else:
            parts.append(decoder.chunk(piece, [0] * len(prompts), [size] * len(prompts)))
        begin += size
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kind", FUSED + GENERIC)
def test_cached_decoding_is_the_forward_pass(kind: str, make_model: Make, prompts: list[list[int]]) -> None:
    model = make_model(kind)
    decoder = make_decoder(model)
    assert isinstance(decoder, FusedDecoder if kind in FUSED else TransformersDecoder)
    sizes = [1, 1, 4, 1, 3, 1, 1]
    rest = torch.randint(0, VOCAB, (len(prompts), sum(sizes)), generator=torch.Generator().manual_seed(1)).tolist()
    hidden = _feed(decoder, prompts, rest, sizes)
    for row, prompt in enumerate(prompts):
        logits, states = _forward(model, prompt + rest[row])
        torch.testing.assert_close(hidden[row], states[len(prompt) - 1 :], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            decoder.logits(hidden[row], VOCAB - 3), logits[len(prompt) - 1 :, : VOCAB - 3], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(decoder.head.logits(hidden[row]), logits[len(prompt) - 1 :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", FUSED + GENERIC)
def test_score_is_the_forward_pass(kind: str, make_model: Make, prompts: list[list[int]]) -> None:
    model = make_model(kind)
    first = [len(prompt) // 2 for prompt in prompts]
    scored = make_decoder(model).score(prompts, first)
    for prompt, begin, hidden in zip(prompts, first, scored, strict=True):
        torch.testing.assert_close(hidden, _forward(model, prompt)[1][begin:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_of_which_nothing_is_asked_have_no_states(kind: str, make_model: Make) -> None:
    decoder = make_decoder(make_model(kind))
    none, some = decoder.score([[3, 4, 5], [6, 7]], [3, 1])
    assert none.shape == (0, decoder.hidden_size) and some.shape == (1, decoder.hidden_size)
    assert decoder.score([[3, 4]], [2])[0].shape == (0, decoder.hidden_size)


@pytest.mark.parametrize("kind", FUSED)
def test_tokens_that_fill_up_change_nothing(
    kind: str, make_model: Make, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(kind)
    monkeypatch.setattr(fused, "padded_tokens", lambda tokens, dtype, device: tokens + 5)
    test_cached_decoding_is_the_forward_pass(kind, lambda _: model, prompts)
    test_score_is_the_forward_pass(kind, lambda _: model, prompts)
    decoder = make_decoder(model)
    decoder.score([[3, 4, 5]], [0])
    assert decoder.positions == 3


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "gemma3"])
def test_retired_rows_leave_the_others_alone(kind: str, make_model: Make, prompts: list[list[int]]) -> None:
    model = make_model(kind)
    decoder = make_decoder(model)
    tokens = torch.randint(0, VOCAB, (len(prompts), 9), generator=torch.Generator().manual_seed(2))
    _feed(decoder, prompts, tokens[:, :3].tolist(), [1, 2])
    decoder.start(len(prompts), max(map(len, prompts)) + 9)
    longest = max(map(len, prompts))
    decoder.chunk(
        padded(prompts, decoder.device, left=True),
        [longest - len(prompt) for prompt in prompts],
        [longest] * len(prompts),
    )
    keep = list(range(len(prompts)))
    for column in range(9):
        hidden = decoder.step(tokens[keep, column])
        for place, row in enumerate(keep):
            expected = _forward(model, prompts[row] + tokens[row, : column + 1].tolist())[1][-1]
            torch.testing.assert_close(hidden[place], expected, atol=1e-4, rtol=1e-4)
        if column % 2 == 0 and len(keep) > 1:
            places = [place for place in range(len(keep)) if place != column % len(keep)]
            decoder.retire(torch.tensor(places))
            keep = [keep[place] for place in places]


def test_a_fused_decoder_has_its_own_layers(make_model: Make) -> None:
    model = make_model("llama")
    decoder = make_decoder(model)
    before = decoder.score([[3, 4, 5]], [0])[0]
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
    assert torch.equal(decoder.score([[3, 4, 5]], [0])[0], before)


def test_tables_are_shared(make_model: Make) -> None:
    model = make_model("llama")
    assert make_decoder(model).head.weight_VD.data_ptr() == model.lm_head.weight.data_ptr()
    scoring: Any = make_decoder(model, scores=True)
    assert scoring._head._weight.data_ptr() == model.lm_head.weight.data_ptr()
    half: Any = make_decoder(model, dtype=torch.bfloat16)
    assert half.head.weight_VD.dtype == half.dtype and half.vocab == model.config.vocab_size
    assert half._embedding_VD.data_ptr() == model.model.embed_tokens.weight.data_ptr(), "whatever the format"


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_half_precision_stays_near_float32(kind: str, make_model: Make, prompts: list[list[int]]) -> None:
    model = make_model(kind)
    rest = [[5, 6, 7]] * len(prompts)
    exact = _feed(make_decoder(model), prompts, rest, [1, 1, 1])
    decoder = make_decoder(model, dtype=torch.bfloat16)
    half = _feed(decoder, prompts, rest, [1, 1, 1])
    widened = kind == "qwen3" and widens(torch.bfloat16, decoder.device)
    assert half.dtype == decoder.dtype == (torch.float32 if widened else torch.bfloat16)
    assert not torch.equal(half.float(), exact)
    assert (half.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora_is_merged(kind: str, make_model: Make) -> None:
    targets = ["q_proj", "down_proj"] if kind == "llama" else ["c_attn"]
    adapted = get_peft_model(make_model(kind), LoraConfig(r=2, target_modules=targets, fan_in_fan_out=kind == "gpt2"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3)
    adapted.eval()
    tokens = [4, 9, 2, 17, 30]
    with torch.no_grad():
        expected = adapted(input_ids=torch.tensor([tokens])).logits[0]
        bare = adapted.get_base_model()
        with adapted.disable_adapter():
            assert not torch.allclose(bare(input_ids=torch.tensor([tokens])).logits[0], expected, atol=1e-2)
    decoder = make_decoder(adapted)
    scored = decoder.score([tokens], [0])[0]
    torch.testing.assert_close(decoder.logits(scored, VOCAB), expected, atol=1e-4, rtol=1e-4)


def test_a_model_that_cannot_take_masks_is_refused(make_model: Make) -> None:
    model = make_model("gpt2")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="explicit masks"):
        make_decoder(model)
