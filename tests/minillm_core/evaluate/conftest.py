"""Tiny random models and a tokenizer that spells words, for the measurements."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 11
"""Tokens that exist; the heads of the tiny models have a few rows more."""
EOS = 1


def tiny_model(seed: int, *, scale: float = 0.5, rows: int = 16) -> PreTrainedModel:
    """A random LLaMA of two layers whose head has ``rows`` rows; a larger ``scale`` makes it surer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=scale,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def student() -> PreTrainedModel:
    return tiny_model(1)


@pytest.fixture(scope="session")
def teacher() -> PreTrainedModel:
    return tiny_model(2)


@pytest.fixture(scope="session")
def unsure() -> PreTrainedModel:
    """Finds every token about as likely as any other."""
    return tiny_model(3, scale=0.02)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; ``</s>`` ends a text."""
    words = ["<s>", "</s>", "good", "bad", "film", "a", "the", "was", "very", "yes", "no"]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
