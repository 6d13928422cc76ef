"""Random models with sharp distributions, one for each shape of decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _build(kind: str, vocab: int, layers: int) -> PreTrainedModel:
    small = {**_SMALL, "vocab_size": vocab, "num_hidden_layers": layers}
    if kind == "gpt2":
        ids = {"bos_token_id": 1, "eos_token_id": 1}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=vocab, n_positions=128, n_embd=32, n_layer=layers, n_head=4, n_inner=48, **ids)
        )
    if kind == "opt":
        return OPTForCausalLM(
            OPTConfig(
                vocab_size=vocab,
                hidden_size=32,
                word_embed_proj_dim=16,
                ffn_dim=48,
                num_hidden_layers=layers,
                num_attention_heads=4,
                max_position_embeddings=128,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=False))
    if kind == "llama3_rope":
        return LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=True, rope_parameters=_LLAMA3_ROPE))
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**small, sliding_window=5))
    if kind == "qwen2":
        return Qwen2ForCausalLM(
            Qwen2Config(**small, use_sliding_window=True, sliding_window=4, max_window_layers=layers - 1)
        )
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**small, head_dim=16))
    if kind == "gemma":
        return GemmaForCausalLM(GemmaConfig(**small, head_dim=8))
    if kind == "gemma2":
        return Gemma2ForCausalLM(
            Gemma2Config(**small, head_dim=8, sliding_window=4, final_logit_softcapping=3.0, query_pre_attn_scalar=8)
        )
    if kind == "gemma3":
        types = ["sliding_attention" if index % 2 == 0 else "full_attention" for index in range(layers)]
        return Gemma3ForCausalLM(
            Gemma3TextConfig(**small, head_dim=8, sliding_window=4, layer_types=types, query_pre_attn_scalar=8)
        )
    raise ValueError(kind)


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """``make_model(kind, vocab=40, layers=2, seed=0)``: every weight random and large, biases and norms too."""

    def make(kind: str, vocab: int = 40, layers: int = 2, seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        model = _build(kind, vocab, layers).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.8 if "embed" in name or "wte" in name else 0.3)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    return make


@pytest.fixture
def prompts() -> list[list[int]]:
    """Prompts of unequal length; token 1, which is eos, occurs within them."""
    generator = torch.Generator().manual_seed(5)
    lengths = (3, 9, 1, 6, 12, 4, 7)
    return [torch.randint(1, 40, (length,), generator=generator).tolist() for length in lengths]
