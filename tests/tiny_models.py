"""Tiny random models of every family and a small dataset, made where a test needs them.

Each model has a real byte-level BPE tokenizer, trained on the sentences below, with a chat template
that writes the eos token inside the prompt, as SmolLM2's and Qwen's do.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
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
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = ("llama", "gpt2", "opt", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
START, END, UNKNOWN = "<|start|>", "<|end|>", "<|unknown|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{START}' + message['role'] + '\n' + message['content'] + '{END}\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{START}assistant\n' }}}}{{% endif %}}"
)

_NOUNS = ("river", "baker", "lantern", "bicycle", "garden", "violin", "harbour", "teacher")
_VERBS = ("carries", "repairs", "remembers", "paints", "follows", "measures")
_PLACES = ("near the old bridge", "before sunrise", "on a cold morning", "without any help", "in the market hall")
SENTENCES = tuple(
    f"The {noun} {verb} the {_NOUNS[(index + 3) % len(_NOUNS)]} {_PLACES[(index * 2 + turn) % len(_PLACES)]}."
    for index, noun in enumerate(_NOUNS)
    for turn, verb in enumerate(_VERBS)
)


@functools.cache
def _trained(vocab: int) -> str:
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[UNKNOWN, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(vocab: int = 384, *, starts: bool = False, chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """The tokenizer of :func:`write_tiny_model`; with ``starts`` it puts a start token before every text."""
    backend = Tokenizer.from_str(_trained(vocab))
    if starts:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, backend.token_to_id(START))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def write_tiny_model(
    folder: Path,
    family: str = "llama",
    *,
    layers: int = 2,
    hidden: int = 32,
    vocab: int = 384,
    padded_vocab: int | None = None,
    context: int = 256,
    seed: int = 0,
    scale: float = 1.0,
) -> Path:
    """Save a random model of ``family`` with its tokenizer as a model folder and return it.

    ``vocab`` is the tokenizer's size (at least 260), ``padded_vocab`` the width of the embedding and
    head where it is larger, ``scale`` a factor on the weights' spread: above 1 gives distributions
    that are less flat.
    """
    tokenizer = tiny_tokenizer(vocab, starts=family in ("llama", "mistral", "opt", "gemma", "gemma2", "gemma3"))
    width = padded_vocab or len(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(family, layers, hidden, width, context, tokenizer)
        with torch.no_grad():
            for parameter in model.parameters():
                # Norm weights, biases and all: what is zero or one at birth would hide what is left out.
                parameter.add_(torch.randn_like(parameter), alpha=0.05 * scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _model(family: str, layers: int, hidden: int, width: int, context: int, tokenizer: Any) -> Any:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=width, n_positions=context, n_embd=hidden, n_layer=layers, n_head=4, n_inner=2 * hidden, **ids
        )
        return GPT2LMHeadModel(config)
    if family == "opt":
        return OPTForCausalLM(
            OPTConfig(
                vocab_size=width,
                max_position_embeddings=context,
                hidden_size=hidden,
                word_embed_proj_dim=hidden // 2,
                num_hidden_layers=layers,
                num_attention_heads=4,
                ffn_dim=2 * hidden,
                **ids,
            )
        )
    shape: dict[str, Any] = {
        "vocab_size": width,
        "max_position_embeddings": context,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **ids,
    }
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**shape, sliding_window=None))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
    shape["head_dim"] = hidden // 4
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=True))
    if family == "gemma":
        return GemmaForCausalLM(GemmaConfig(**shape))
    # Windows shorter than the tests' rows, so that the two kinds of layers differ.
    shape["sliding_window"] = 8
    shape["layer_types"] = [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]
    shape["query_pre_attn_scalar"] = hidden // 4
    if family == "gemma2":
        # Caps low enough to bend the logits of a random model.
        return Gemma2ForCausalLM(Gemma2Config(**shape, final_logit_softcapping=2.0, attn_logit_softcapping=1.5))
    if family == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**shape))
    raise ValueError(f"no tiny model of family {family!r}")


def write_tiny_dataset(path: Path, rows: int = 40) -> Path:
    """Write ``rows`` instruction rows whose answers follow from their instructions."""
    with path.open("w") as out:
        for index in range(rows):
            sentence = SENTENCES[index % len(SENTENCES)]
            row = {"instruction": f"Say it once more ({index}): {sentence}", "output": sentence}
            out.write(json.dumps(row) + "\n")
    return path
