"""Per-token quantities of given responses under one or several models.

Every measurement that needs logits goes through :func:`token_values`, which never holds more of
them than ``max_logits`` numbers a model: the decoder runs once over each micro-batch, the head over the
positions that predict a response token, a slice at a time.

Axes: B rows, T positions, N counted tokens, D hidden width, V shared vocabulary, K quantities a
token, L tokens of one response.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

import torch
from transformers import PreTrainedModel

from minillm_core.data.batching import pad_rows, plan_microbatches
from minillm_core.models.families import OutputHead, hidden_states, output_head
from minillm_core.rollout.decoder import Decoder

MAX_LOGITS = 2**24
"""Logits formed at a time: 64 MB a model in float32, and several times that inside a divergence."""


class Row(Protocol):
    """What is read of a dataset's row: ``minillm_core.data.dataset.TokenizedRow`` has it."""

    @property
    def prompt_ids(self) -> list[int]: ...

    @property
    def response_ids(self) -> list[int]: ...


Scored: TypeAlias = PreTrainedModel | Decoder
"""What can be asked for hidden states: a model in training as it is, one that only answers by its decoder."""

Compute = Callable[[tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]
"""From the logits of each model (N, V), float32, and the token ids (N,) to the values (N, K)."""


@contextlib.contextmanager
def evaluating(*models: Scored) -> Iterator[None]:
    """Dropout off and no gradients; each model goes back to the mode it was in. A decoder has no modes."""
    training = [(model, model.training) for model in models if isinstance(model, PreTrainedModel)]
    for model, _ in training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for model, was_training in training:
            model.train(was_training)


def scored_head(model: Scored) -> OutputHead:
    """The head that the hidden states of ``model`` go through."""
    return output_head(model) if isinstance(model, PreTrainedModel) else model.head


def response_hidden_states(
    model: Scored, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Final hidden states (N, D) that predict the tokens of the responses, none of which is empty, in one pass."""
    if not isinstance(model, PreTrainedModel):
        sequences = [[*prompt, *response[:-1]] for prompt, response in zip(prompts, responses, strict=True)]
        return torch.cat(model.score(sequences, [len(prompt) - 1 for prompt in prompts]))
    device = output_head(model).weight_VD.device
    batch = pad_rows(list(prompts), list(responses), pad_id=0, device=device)
    hidden_BTD = hidden_states(model, batch.input_ids_BT, batch.attention_mask_BT, batch.position_ids_BT)
    return hidden_BTD[batch.predicts_response_BT]


def token_values(
    compute: Compute,
    models: Sequence[Scored],
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    vocab: int | None = None,
    batch_tokens: int = 8192,
    max_logits: int = MAX_LOGITS,
) -> list[torch.Tensor]:
    """``compute`` at every response token: a float64 CPU tensor (L, K) for each row, in the order of the rows.

    ``vocab`` is the shared real vocabulary; logits past it are cut off before anything else (the
    narrowest of the models' heads when left out). ``batch_tokens`` is the padded size of one
    forward pass. An empty response gives a tensor of no rows.

    Raises ValueError where a prompt is empty: nothing then predicts the first token.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a response is scored after a prompt of at least one token")
    heads = [scored_head(model) for model in models]
    width = min(head.weight_VD.shape[0] for head in heads) if vocab is None else vocab
    heads = [head.cut(width) for head in heads]
    device = heads[0].weight_VD.device
    values: list[torch.Tensor] = [torch.zeros(0, 1, dtype=torch.float64)] * len(responses)
    kept = [row for row, response in enumerate(responses) if len(response) > 0]
    lengths = [len(prompts[row]) + len(responses[row]) for row in kept]
    slice_tokens = max(1, max_logits // width)
    with evaluating(*models):
        for group in plan_microbatches(lengths, batch_tokens):
            rows = [kept[index] for index in group]
            asked, answered = [prompts[row] for row in rows], [responses[row] for row in rows]
            tokens_N = torch.tensor([token for response in answered for token in response], device=device)
            hidden = [response_hidden_states(model, asked, answered) for model in models]
            slices = [
                compute(
                    tuple(
                        head.logits(hidden_ND[start : start + slice_tokens]).float()
                        for head, hidden_ND in zip(heads, hidden, strict=True)
                    ),
                    tokens_N[start : start + slice_tokens],
                )
                for start in range(0, len(tokens_N), slice_tokens)
            ]
            values_NK = torch.cat(slices).double().cpu()
            for row, values_LK in zip(rows, values_NK.split([len(responses[row]) for row in rows]), strict=True):
                values[row] = values_LK
    return values


def token_log_probs(
    model: Scored,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    vocab: int | None = None,
    batch_tokens: int = 8192,
) -> list[torch.Tensor]:
    """Log-probability (L,) of every token of each response, temperature 1."""

    def compute(logits: tuple[torch.Tensor, ...], tokens_N: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits[0], dim=-1).gather(-1, tokens_N.unsqueeze(-1))

    found = token_values(compute, [model], prompts, responses, vocab=vocab, batch_tokens=batch_tokens)
    return [values_L1.squeeze(-1) for values_L1 in found]
