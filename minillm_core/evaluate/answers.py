"""What a model answers to the dev prompts, as tokens and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minillm_core.data.batching import pad_rows, plan_microbatches
from minillm_core.evaluate.scoring import evaluating
from minillm_core.models.families import vocab_size


@dataclass(frozen=True)
class Answers:
    """One entry a prompt, in the order of the prompts."""

    response_ids: list[list[int]]
    """With the end token where there is one."""
    truncated: list[bool]
    """Whether the token limit came before an end token."""
    texts: list[str]
    """Without special tokens, and without blanks at either end."""


def decode_texts(tokenizer: PreTrainedTokenizerBase, response_ids: Sequence[Sequence[int]]) -> list[str]:
    """Responses as texts: special tokens left out, blanks at either end cut."""
    return [str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in response_ids]


class _WithinVocabulary(LogitsProcessor):
    """Rules out the rows of the head that pad it to a round size."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self._vocab :] = -torch.inf
        return scores


def answers_without_repeats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    no_repeat_ngram_size: int,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    seed: int,
    batch_rows: int,
    vocab: int | None = None,
    temperature: float = 1.0,
    greedy: bool = False,
) -> Answers:
    """Answers in which no n-gram of ``no_repeat_ngram_size`` tokens occurs twice, prompt included.

    The published MiniLLM results forbid repeated 6-grams in the final evaluation and not during
    training. The ban looks at each row's whole history, which the rollout's sampler does not do:
    this runs ``model.generate``, seeded, and leaves torch's global random state as it was.
    """
    width = vocab_size(model) if vocab is None else vocab
    device = next(model.parameters()).device
    config = GenerationConfig(
        do_sample=not greedy,
        temperature=None if greedy else temperature,
        top_k=None if greedy else 0,
        top_p=None if greedy else 1.0,
        max_new_tokens=max_new_tokens,
        no_repeat_ngram_size=no_repeat_ngram_size,
        eos_token_id=list(eos_ids),
        pad_token_id=eos_ids[0],
        num_beams=1,
        use_cache=True,
    )
    found: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    with evaluating(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for rows in plan_microbatches(lengths, batch_rows * max(lengths, default=1)):
            batch = pad_rows([prompts[row] for row in rows], [[]] * len(rows), pad_id=0, side="left", device=device)
            output_BT = model.generate(
                batch.input_ids_BT,
                attention_mask=batch.attention_mask_BT,
                generation_config=config,
                logits_processor=LogitsProcessorList([_WithinVocabulary(width)]),
            )
            for row, response in zip(rows, output_BT[:, batch.input_ids_BT.shape[1] :].tolist(), strict=True):
                found[row] = _through_first_end(response, eos_ids)
    truncated = [not ids or ids[-1] not in eos_ids for ids in found]
    return Answers(found, truncated, decode_texts(tokenizer, found))


def _through_first_end(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    for place, token in enumerate(ids):
        if token in eos_ids:
            return ids[: place + 1]
    return ids
