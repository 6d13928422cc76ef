"""Rows of unequal length as one run of tokens through a transformers model: no padding is computed.

Everything but attention takes each token by itself, so the rows may simply stand one behind the
other. For attention :class:`PackedRows` travels with the call down to the function that transformers
looks up as ``sdpa``; that function is registered anew here and does what it did where there are no
packed rows. A row sees itself alone, so causality is all the masking there is (and a window, in the
layers that have one and rows longer than it).

Axes: N tokens of all rows joined, B rows, T longest row, H heads, d width of a head, D hidden width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from minillm_core.models.families import base_model, hidden_states, unwrapped
from minillm_core.models.rows_attention import attend as attend_rows
from minillm_core.native import ops
from minillm_core.objectives.products import padded_tokens

PACKED_FAMILIES = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")
"""Families that hand further arguments on to attention; tested to give what padded rows give."""


class PackedRows:
    """Where each row of a run of tokens lies; every row has at least one."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.longest = max(self.lengths)
        self.even = min(self.lengths) == self.longest
        self.calls = 0
        """Layers that have asked so far: a model that does not hand this on leaves it at 0."""
        self.offsets = torch.tensor([0, *itertools.accumulate(self.lengths)])
        """Where each row begins, and N; on the host."""
        self.chosen_N: torch.Tensor | None = None
        """Places of the tokens whose final hidden states are asked for, where not all are."""
        self.chosen_alone = False
        """Whether the model gave these alone (:mod:`minillm_core.models.last_layer`)."""
        self._device = device
        self._grid_N: torch.Tensor | None = None
        self._windows: dict[tuple[int, int], torch.Tensor] = {}

    def filled(self, extra: int) -> PackedRows:
        """These rows and ``extra`` tokens behind them, in rows no longer than the longest."""
        whole, rest = divmod(extra, self.longest)
        return PackedRows([*self.lengths, *[self.longest] * whole, *[rest] * bool(rest)], self._device)

    def positions(self) -> torch.Tensor:
        """Position of each token within its row, (1, N)."""
        return torch.cat([torch.arange(length, device=self._device) for length in self.lengths]).unsqueeze(0)

    def grid(self) -> torch.Tensor:
        """Place of each token, (N,), in the flattened (B * T) of padded rows."""
        if self._grid_N is None:
            runs = [torch.arange(length) + row * self.longest for row, length in enumerate(self.lengths)]
            self._grid_N = torch.cat(runs).to(self._device, non_blocking=True)
        return self._grid_N

    def window(self, length: int, window: int | None) -> torch.Tensor | None:
        """What a row of ``length`` tokens may see, (T, T), where that is less than all before it."""
        if window is None or window >= length:
            return None
        if (length, window) not in self._windows:
            ones_TT = torch.ones(length, length, dtype=torch.bool, device=self._device)
            self._windows[length, window] = ones_TT.tril().triu(1 - window)
        return self._windows[length, window]


def packable(model: nn.Module) -> bool:
    """Whether :func:`packed_hidden_states` gives what the model gives for padded rows."""
    config = unwrapped(model).config
    return config.model_type in PACKED_FAMILIES and config._attn_implementation == "sdpa"


def joined_hidden_states(
    model: nn.Module, input_ids_N: torch.Tensor, rows: PackedRows, chosen_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Final hidden states (N, D) of rows that stand one behind the other; padded in between where it must be.

    ``chosen_N``: places of the tokens whose states to return, in their order; all when left out.
    """
    if packable(model):
        return packed_hidden_states(model, input_ids_N, rows, chosen_N)
    grid_N, shape = rows.grid(), (len(rows.lengths), rows.longest)
    flat = input_ids_N.new_zeros(shape[0] * shape[1])
    input_ids_BT = flat.index_copy(0, grid_N, input_ids_N).view(shape)
    mask_BT = flat.index_fill(0, grid_N, 1).view(shape)
    wanted_N = grid_N if chosen_N is None else grid_N.index_select(0, chosen_N)
    return hidden_states(model, input_ids_BT, mask_BT).flatten(0, 1).index_select(0, wanted_N)


def packed_hidden_states(
    model: nn.Module, input_ids_N: torch.Tensor, rows: PackedRows, chosen_N: torch.Tensor | None = None
) -> torch.Tensor:
    """The same for a :func:`packable` model, in one run. Raises RuntimeError where it leaves ``rows`` aside."""
    tokens = input_ids_N.shape[0]
    extra = padded_tokens(tokens, next(model.parameters()).dtype, input_ids_N.device) - tokens
    if extra:  # tokens whose hidden states nobody reads: they leave no trace in any gradient
        rows = rows.filled(extra)
        input_ids_N = torch.cat([input_ids_N, input_ids_N.new_zeros(extra)])
    # Where no token counts the model is run all the same, so that a rank keeps in step with the others.
    rows.chosen_N = chosen_N if chosen_N is not None and chosen_N.numel() else None
    rows.chosen_alone = False
    # A mask of four axes is taken as it is, so that transformers makes none of N x N itself.
    no_mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=input_ids_N.device)
    output = base_model(model)(
        input_ids=input_ids_N.unsqueeze(0),
        attention_mask=no_mask,
        position_ids=rows.positions(),
        use_cache=False,
        packed_rows=rows,
    )
    if rows.calls == 0:
        raise RuntimeError(f"{type(unwrapped(model)).__name__} does not hand packed rows on to its attention")
    hidden_ND: torch.Tensor = output.last_hidden_state[0]
    if rows.chosen_alone:
        return hidden_ND
    return hidden_ND[:tokens] if chosen_N is None else hidden_ND.index_select(0, chosen_N)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *args: Any,
    packed_rows: PackedRows | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' ``sdpa``, which takes packed rows (1, H, N, d) as well; returns (1, N, H, d)."""
    if packed_rows is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, *args, **kwargs
        )
        return result
    packed_rows.calls += 1
    dropout, scale, window = kwargs.get("dropout", 0.0), kwargs.get("scaling"), kwargs.get("sliding_window")
    if dropout == 0.0 and ops.fits(query, key, value):
        q_NHd, k_NRd, v_NRd = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return attend_rows(q_NHd, k_NRd, v_NRd, packed_rows.offsets, scale=scale, window=window).unsqueeze(0), None
    # On a CPU a row at a time costs no padding; an accelerator would rather have one call.
    attend = _row_by_row if query.device.type == "cpu" and not packed_rows.even else _all_rows
    return attend(query, key, value, packed_rows, dropout, scale, window), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen_TT: torch.Tensor | None,
    dropout: float,
    scale: float | None,
) -> torch.Tensor:
    """(B, T, H, d)."""
    mixed = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=seen_TT,
        dropout_p=dropout,
        scale=scale,
        is_causal=seen_TT is None,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2)


def _row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    dropout: float,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    parts = zip(*(tensor.split(rows.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([_attend(q, k, v, rows.window(q.shape[2], window), dropout, scale) for q, k, v in parts], dim=1)


def _all_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    dropout: float,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Padded on the right, which causality hides: no token sees what comes after it."""
    count, longest = len(rows.lengths), rows.longest

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = tensor.shape
        tokens = tensor[0].transpose(0, 1)
        if not rows.even:
            tokens = tensor.new_zeros(count * longest, heads, width).index_copy(0, rows.grid(), tokens)
        return tokens.unflatten(0, (count, longest)).transpose(1, 2)

    mixed = _attend(spread(query), spread(key), spread(value), rows.window(longest, window), dropout, scale)
    joined = mixed.flatten(0, 1)
    return (joined if rows.even else joined.index_select(0, rows.grid())).unsqueeze(0)


AttentionInterface.register("sdpa", _attention)
