"""Decoding through a static KV cache: the interface, and the choice of its implementation.

A batch of rows is decoded in *columns*: prompts are padded on the left so that every row writes
the same column at the same time, and one host integer says where the batch is. Which columns of a
row are padding is told by its number of padding columns, never by token ids.

Axes: B rows, K new columns, N tokens of all rows joined, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from minillm_core.models.families import OutputHead
from minillm_core.rollout.fused import FusedDecoder, fusible
from minillm_core.rollout.generic import TransformersDecoder


class Decoder(Protocol):
    """One model, its weights as decoding wants them, and the KV cache of one batch of rows."""

    device: torch.device
    dtype: torch.dtype
    """Of hidden states and logits; the weights may be narrower."""
    context: int
    """Positions the model was made for: the longest row, prompt and response together."""
    hidden_size: int
    positions: int
    """Positions computed since the decoder was made, padding included where it was computed too."""
    vocab: int
    """Tokens that the head knows, padding included."""

    @property
    def head(self) -> OutputHead:
        """Dense head in ``dtype``; ``head.cut(vocab).logits`` of the final hidden states are the model's logits.

        Made anew where the model has another format.
        """

    def start(self, rows: int, columns: int) -> None:
        """Begin a batch of rows, each of at most ``columns`` columns; a cache that is large enough is reused."""

    def chunk(self, tokens_BK: torch.Tensor, first: Sequence[int], stop: Sequence[int]) -> torch.Tensor:
        """Feed K columns at once; row i has tokens in columns ``first[i]`` to ``stop[i]`` (exclusive) of them.

        What lies before ``first[i]`` is padding for the whole batch: only the first chunk may have any.
        A row with ``stop[i] < K`` has ended and is not fed again. Returns hidden states (B, K, D); those
        outside the rows' tokens are undefined.
        """

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Feed one column; returns the final hidden states (B, D). Waits for nothing on the device."""

    def retire(self, keep: torch.Tensor) -> None:
        """Keep the rows with the ascending indices ``keep`` and forget the others."""

    def score(self, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> list[torch.Tensor]:
        """Final hidden states (len - first[i], D) at positions from ``first[i]`` on of whole sequences, without cache.

        Each result owns no more memory than its rows; results may be views of one tensor.
        """

    def logits(self, hidden_ND: torch.Tensor, vocab: int) -> torch.Tensor:
        """Logits (N, vocab) in ``dtype``."""

    def release(self) -> None:
        """Give back the cache and the work buffers; the next :meth:`start` makes new ones."""


def make_decoder(
    model: PreTrainedModel, *, dtype: torch.dtype | None = None, context: int | None = None, scores: bool = False
) -> Decoder:
    """The fastest decoder that is right for ``model``.

    ``dtype`` is the number format to decode in (the model's own when left out); where it is bfloat16 and the CPU
    cannot multiply that, the weights are rounded to it and the rest is float32. ``context`` overrides
    the model's number of positions. LLaMA-shaped families get merged and packed copies of the weights;
    only the embedding table is shared with ``model``, and with it the head where it is not packed, and ``model``
    itself may be dropped. ``scores`` is for a frozen model that will see whole rows more than single tokens,
    a teacher: what need not be merged or packed is then shared as well. Any other family runs through
    transformers, sharing all parameters where the format is the same. A decoder is good until the next
    optimizer step; under ZeRO-3 make and use it within ``Engine.whole_model``.

    Raises ValueError where the model's attention cannot take an explicit mask.
    """
    chosen = dtype or next(model.parameters()).dtype
    if fusible(model):
        return FusedDecoder(model, chosen, context, scores=scores)
    return TransformersDecoder(model, chosen, context)
