"""A decoder for any causal model of transformers, through the model's own forward pass.

Masks, positions and the cache are ours: an additive mask of four axes says what each token sees,
positions are counted over the tokens that are there, and the cache is written in place. Layers with
a sliding window keep every column and are masked like the others.

Axes: N tokens, B rows, K new columns, W columns of the cache, D hidden width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.initialization import no_init_weights

from minillm_core.models.families import (
    base_model,
    cast_parameters,
    context_length,
    disable_dropout,
    output_head,
    unwrapped,
)
from minillm_core.rollout.columns import Columns
from minillm_core.rollout.packing import padded, row_slices
from minillm_core.rollout.weights import effective_weights

_CHUNK_TOKENS = 2048
_MASKED_ATTENTION = ("sdpa", "eager")


class _CacheLayer(CacheLayerMixin):
    """Keys and values (B, H, W, d) of one layer; ``begin`` is set by the decoder before each pass."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.columns, self.total_rows = columns, rows
        self.first_row, self.begin = 0, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        _, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(self.total_rows, heads, self.columns, width)
        self.values = value_states.new_zeros(self.total_rows, heads, self.columns, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows = slice(self.first_row, self.first_row + key_states.shape[0])
        end = self.begin + key_states.shape[2]
        self.keys[rows, :, self.begin : end] = key_states
        self.values[rows, :, self.begin : end] = value_states
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def keep(self, rows: torch.Tensor) -> None:
        count = rows.shape[0]
        for name in ("keys", "values"):
            tensor = getattr(self, name)
            tensor[:count] = tensor[rows]
            setattr(self, name, tensor[:count])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.begin + query_length, 0

    def get_seq_length(self) -> int:
        return self.begin

    def get_max_length(self) -> int:
        return self.columns


class TransformersDecoder:
    """See :class:`minillm_core.rollout.decoder.Decoder`.

    Shares the parameters of a model that has the format asked for and no adapter; the model is then put
    into evaluation mode, and under ZeRO-3 used within ``Engine.whole_model``.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, context: int | None) -> None:
        inner = unwrapped(model)
        config = inner.config
        if config._attn_implementation not in _MASKED_ATTENTION:
            raise ValueError(
                f"decoding {config.model_type} needs attention with explicit masks ({' or '.join(_MASKED_ATTENTION)}), "
                f"not {config._attn_implementation}"
            )
        self.context = context or context_length(config)
        self.dtype = dtype
        self.positions = 0
        parameters = list(inner.parameters())
        self._shared = (
            model is inner
            and all(parameter.dtype == dtype for parameter in parameters)
            and not any(hasattr(parameter, "ds_id") for parameter in parameters)
        )
        self._model = inner if self._shared else _empty_copy(inner, dtype)
        self.device = parameters[0].device
        if not self._shared:
            self._model.to(self.device)
        self._load(model)
        self._base = base_model(self._model)
        self._windows = _windows(config)
        self._by_type = "attention_mask, dict" in inspect.getsource(type(self._base).forward)
        if len(self._windows) > 1 and not self._by_type:
            raise ValueError(f"{config.model_type} has layers of several kinds and takes one mask for all")
        self._cache: Cache | None = None
        self._columns: Columns | None = None

    @torch.no_grad()
    def _load(self, model: PreTrainedModel) -> None:
        if not self._shared:
            weights = effective_weights(model)
            for name, parameter in self._model.named_parameters():
                parameter.copy_(weights[name])
        head = output_head(self._model)
        bias = None if head.bias_V is None else head.bias_V.detach()
        self.head = head._replace(weight_VD=head.weight_VD.detach(), bias_V=bias)
        self.vocab, self.hidden_size = head.weight_VD.shape

    def _masks(self, batch: Columns, begin: int, end: int, columns: int) -> Any:
        masks = {kind: batch.chunk_bias(begin, end, columns, window) for kind, window in self._windows.items()}
        return masks if self._by_type else next(iter(masks.values()))

    def _forward(self, tokens_BK: torch.Tensor, positions_BK: torch.Tensor, masks: Any) -> torch.Tensor:
        self.positions += tokens_BK.numel()
        output = self._base(
            input_ids=tokens_BK,
            attention_mask=masks,
            position_ids=positions_BK,
            past_key_values=self._cache,
            use_cache=self._cache is not None,
        )
        return output.last_hidden_state

    def start(self, rows: int, columns: int) -> None:
        self._model.eval()
        self._columns = Columns(rows, columns, frozenset(), self.device, self.dtype)
        layers = [_CacheLayer(columns, rows) for _ in range(self._model.config.num_hidden_layers)]
        self._cache = Cache(layers=layers)

    @property
    def _batch(self) -> Columns:
        if self._columns is None:
            raise RuntimeError("start() comes first")
        return self._columns

    @torch.no_grad()
    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        return self._pass(0, self._batch.rows, tokens_B.unsqueeze(1), close=True).squeeze(1)

    @torch.no_grad()
    def chunk(self, tokens_BK: torch.Tensor, first: Sequence[int], stop: Sequence[int]) -> torch.Tensor:
        batch = self._batch
        if batch.count == 0:
            batch.take_padding(first)
        rows, columns = tokens_BK.shape
        parts = [
            self._pass(begin, end, tokens_BK[begin:end], close=end == rows)
            for begin, end in row_slices([columns] * rows, _CHUNK_TOKENS)
        ]
        return torch.cat(parts)

    def _pass(self, begin: int, end: int, tokens_BK: torch.Tensor, *, close: bool) -> torch.Tensor:
        batch, columns = self._batch, tokens_BK.shape[1]
        assert self._cache is not None
        for layer in self._cache.layers:
            layer.first_row, layer.begin = begin, batch.count
        positions_BK = batch.chunk_positions(begin, end, columns)
        hidden_BKD = self._forward(tokens_BK, positions_BK, self._masks(batch, begin, end, columns))
        if close:
            batch.close_chunk(columns)
        return hidden_BKD

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> list[torch.Tensor]:
        self._model.eval()
        cache, self._cache = self._cache, None
        order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
        hidden: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
        for begin, end in row_slices([len(sequences[row]) for row in order], _CHUNK_TOKENS):
            rows = [sequences[row] for row in order[begin:end]]
            columns = max(map(len, rows))
            alone = Columns(len(rows), columns, frozenset(), self.device, self.dtype)
            positions_BK = alone.chunk_positions(0, len(rows), columns).expand(len(rows), -1)
            tokens_BK = padded(rows, self.device, left=False)
            hidden_BKD = self._forward(tokens_BK, positions_BK, self._masks(alone, 0, len(rows), columns))
            for place, row in enumerate(order[begin:end]):
                hidden[row] = hidden_BKD[place, first[row] : len(sequences[row])].clone()
        self._cache = cache
        return hidden

    @torch.no_grad()
    def logits(self, hidden_ND: torch.Tensor, vocab: int) -> torch.Tensor:
        return self.head.cut(vocab).logits(hidden_ND)

    def retire(self, keep: torch.Tensor) -> None:
        self._batch.retire(keep)
        assert self._cache is not None
        for layer in self._cache.layers:
            layer.keep(keep)

    def release(self) -> None:
        self._cache = self._columns = None


def _empty_copy(inner: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model of the same architecture and buffers, whose parameters are yet to be copied in."""
    with no_init_weights():
        fresh = type(inner)(inner.config)
    cast_parameters(fresh, dtype)
    disable_dropout(fresh)
    return fresh.eval().requires_grad_(False)


def _windows(config: Any) -> dict[str, int | None]:
    """Sliding window by kind of layer; one entry for families whose layers are all alike."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        return {"full_attention": window}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(types))}
