"""Tiny model folders written without torch: a config, a tokenizer and a safetensors file of the right shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

WORDS = ("the", "a", "cat", "dog", "runs", "sleeps", "and", "then")


def write_tokenizer(folder: Path, words: tuple[str, ...] = WORDS) -> None:
    vocabulary = {token: number for number, token in enumerate(("<unk>", "<eos>", *words))}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [
                    {
                        "id": number,
                        "content": token,
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                        "special": True,
                    }
                    for number, token in enumerate(("<unk>", "<eos>"))
                ],
                "normalizer": None,
                "pre_tokenizer": {"type": "Whitespace"},
                "post_processor": None,
                "decoder": None,
                "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
            }
        )
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "unk_token": "<unk>"})
    )


def write_model(
    root: Path,
    name: str,
    *,
    layers: int = 4,
    hidden: int = 8,
    context: int = 512,
    words: tuple[str, ...] = WORDS,
    architecture: str = "LlamaForCausalLM",
    **config: Any,
) -> Path:
    """A llama-shaped folder `root/name`; further keywords go into its config.json."""
    folder = root / name
    folder.mkdir(parents=True)
    vocab, inner = len(words) + 2, hidden * 2
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": [architecture],
                "model_type": "llama",
                "vocab_size": vocab,
                "hidden_size": hidden,
                "intermediate_size": inner,
                "num_hidden_layers": layers,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": context,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "eos_token_id": 1,
                **config,
            }
        )
    )
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{prefix}self_attn.{projection}.weight"] = (hidden, hidden)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    save_file(
        {key: np.zeros(shape, dtype=np.float32) for key, shape in shapes.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    write_tokenizer(folder, words)
    return folder
