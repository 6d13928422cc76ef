"""Attention of the LLaMA-shaped families over a decoding cache: with torch, or with this project's kernels.

Both give functions from a layer's queries, keys and values, as its product made them, to the mixed values: of one
step, of a chunk of new columns, of whole rows without a cache. Rotary positions turn pairs that lie side by side
(:mod:`minillm_core.rollout.fused` orders the weights so).

Axes: N tokens of all rows joined, B rows, K new columns, W columns of the cache, H query heads (G of them share
one of R key-value heads), d width of a head, P positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from minillm_core.native import ops
from minillm_core.rollout.cache import KeyValues
from minillm_core.rollout.columns import Columns
from minillm_core.rollout.packing import packed_index

Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""From the number of a layer and its queries, keys and values (N, H + 2R, d), before norms and rotation, to the mixed
values (N, H * d)."""


@dataclass(frozen=True)
class HeadShape:
    heads: int
    kv_heads: int
    width: int
    eps: float
    """Of the norms of queries and keys, where a family has them."""
    windows: Sequence[int | None]
    """Sliding window of each layer, None for full attention."""

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


HeadNorms = tuple[torch.Tensor | None, torch.Tensor | None]
"""Weights (d,) of the norms of a layer's queries and keys, or None twice."""


class Piece:
    """Some rows of a batch, their new tokens joined."""

    def __init__(
        self, begin: int, end: int, columns: int, first: Sequence[int], stop: Sequence[int], device: torch.device
    ) -> None:
        self.begin, self.end, self.columns = begin, end, columns
        self.rows = end - begin
        self.lengths = [max(0, last - begun) for begun, last in zip(first, stop, strict=True)]
        self.index_N = packed_index(first, stop, columns, device)
        """Places of the tokens in the flattened (rows * columns)."""

    def spread(self, part_NHd: torch.Tensor) -> torch.Tensor:
        """Joined tokens back in their rows: (B, H, K, d), zero where there is no token."""
        _, heads, width = part_NHd.shape
        if self.index_N.shape[0] == self.rows * self.columns:
            grid = part_NHd
        else:
            grid = part_NHd.new_zeros(self.rows * self.columns, heads, width)
            grid.index_copy_(0, self.index_N, part_NHd)
        return grid.view(self.rows, self.columns, heads, width).transpose(1, 2)


class TorchAttention:
    """``dtype``: the number format of attention and of the cache; ``norms``: those of each layer."""

    def __init__(self, shape: HeadShape, norms: Sequence[HeadNorms], dtype: torch.dtype) -> None:
        self.shape, self.norms, self.dtype = shape, norms, dtype
        self.biased_windows = frozenset(shape.windows)
        """Windows for which a batch has to keep what each column may see."""

    def parts(
        self, layer: int, qkv_NHd: torch.Tensor, table_P: torch.Tensor, positions_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (N, H, d), keys and values (N, R, d), normed and rotated."""
        rotated = self.shape.heads + self.shape.kv_heads
        qk_NHd = self._normed(layer, qkv_NHd[:, :rotated])
        pairs = torch.view_as_complex(qk_NHd.float().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * table_P[positions_N].unsqueeze(1)).flatten(-2).to(self.dtype)
        return turned[:, : self.shape.heads], turned[:, self.shape.heads :], qkv_NHd[:, rotated:].to(self.dtype)

    def _normed(self, layer: int, qk_NHd: torch.Tensor) -> torch.Tensor:
        q_norm_d, k_norm_d = self.norms[layer]
        if q_norm_d is None:
            return qk_NHd
        width, heads, eps = (self.shape.width,), self.shape.heads, self.shape.eps
        q_NHd = nn.functional.rms_norm(qk_NHd[:, :heads], width, q_norm_d, eps)
        k_NHd = nn.functional.rms_norm(qk_NHd[:, heads:], width, k_norm_d, eps)
        return torch.cat((q_NHd, k_NHd), dim=1)

    def step(self, batch: Columns, cache: KeyValues, table_P: torch.Tensor, width: int) -> Attend:
        """One column of every row; ``width`` columns of the cache are looked at."""
        rows, shared, group, d = batch.rows, self.shape.kv_heads, self.shape.group, self.shape.width
        bias = {
            window: batch.step_bias(window, width)
            .view(rows, 1, 1, width)
            .expand(rows, shared, group, width)
            .reshape(rows * shared, group, width)
            for window in set(self.shape.windows)
        }
        positions_B = batch.step_positions()

        def attend(layer: int, qkv_BHd: torch.Tensor) -> torch.Tensor:
            q_BHd, k_BRd, v_BRd = self.parts(layer, qkv_BHd, table_P, positions_B)
            keys, values = cache.keys[layer], cache.values[layer]
            keys.index_copy_(2, batch.next_1, k_BRd.unsqueeze(2))
            values.index_copy_(2, batch.next_1, v_BRd.unsqueeze(2))
            q = q_BHd.reshape(rows * shared, group, d)
            keys = keys[:, :, :width].view(rows * shared, width, d)
            values = values[:, :, :width].view(rows * shared, width, d)
            seen = bias[self.shape.windows[layer]]
            if self.dtype == torch.float32:
                weight = torch.baddbmm(seen, q, keys.transpose(1, 2), alpha=d**-0.5).softmax(dim=-1)
                mixed = torch.bmm(weight, values)
            else:  # products of half precision round the scores; the fused kernel does not
                mixed = nn.functional.scaled_dot_product_attention(
                    q.unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1), attn_mask=seen.unsqueeze(1)
                )
            return mixed.reshape(rows, -1)

        return attend

    def chunk(self, batch: Columns, cache: KeyValues, table_P: torch.Tensor, piece: Piece) -> Attend:
        """New columns of some rows, which see what the cache holds of them too."""
        begin, end, columns, group = piece.begin, piece.end, piece.columns, self.shape.group
        before, after = batch.count, batch.count + columns
        bias = {
            window: batch.chunk_bias(begin, end, columns, window).repeat(1, 1, group, 1)
            for window in set(self.shape.windows)
        }
        positions_N = batch.chunk_positions(begin, end, columns).flatten()[piece.index_N]

        def attend(layer: int, qkv_NHd: torch.Tensor) -> torch.Tensor:
            q_NHd, k_NRd, v_NRd = self.parts(layer, qkv_NHd, table_P, positions_N)
            keys, values = cache.keys[layer][begin:end], cache.values[layer][begin:end]
            keys[:, :, before:after] = piece.spread(k_NRd)
            values[:, :, before:after] = piece.spread(v_NRd)
            seen = bias[self.shape.windows[layer]]
            return self._grouped(piece.spread(q_NHd), keys[:, :, :after], values[:, :, :after], seen)[piece.index_N]

        return attend

    def alone(self, table_P: torch.Tensor, piece: Piece) -> Attend:
        """Rows from their first column on, without a cache: padding on the right is what no token sees anyway."""
        columns, device = piece.columns, piece.index_N.device
        batch = Columns(1, columns, frozenset(), device, self.dtype)
        bias = {
            window: batch.chunk_bias(0, 1, columns, window).repeat(1, 1, self.shape.group, 1)
            for window in set(self.shape.windows)
        }
        positions_N = piece.index_N % columns

        def attend(layer: int, qkv_NHd: torch.Tensor) -> torch.Tensor:
            q, k, v = (piece.spread(part) for part in self.parts(layer, qkv_NHd, table_P, positions_N))
            return self._grouped(q, k, v, bias[self.shape.windows[layer]])[piece.index_N]

        return attend

    def _grouped(
        self, q_BHKd: torch.Tensor, keys_BRWd: torch.Tensor, values_BRWd: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Attention (B * K, H * d); the heads of a group stand one below the other as queries of one head."""
        rows, heads, columns, width = q_BHKd.shape
        folded = q_BHKd.reshape(rows, self.shape.kv_heads, self.shape.group * columns, width)
        mixed = nn.functional.scaled_dot_product_attention(folded, keys_BRWd, values_BRWd, attn_mask=bias)
        mixed = mixed.view(rows, heads, columns, width)
        return mixed.transpose(1, 2).reshape(rows * columns, -1)


class KernelAttention(TorchAttention):
    """The same on a CPU, computed in float32 whatever the format of the weights and of the cache: one call for each
    layer, and no row is padded. The kernels tell what a row may see from its padding alone."""

    def __init__(self, shape: HeadShape, norms: Sequence[HeadNorms], dtype: torch.dtype) -> None:
        super().__init__(shape, norms, dtype)
        self.biased_windows = frozenset()

    def parts(
        self, layer: int, qkv_NHd: torch.Tensor, table_P: torch.Tensor, positions_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads, shared = self.shape.heads, self.shape.kv_heads
        qkv_NHd = ops.rotate_pairs(qkv_NHd, table_P, positions_N, *self.norms[layer], self.shape.eps, shared)
        return qkv_NHd[:, :heads], qkv_NHd[:, heads : heads + shared], qkv_NHd[:, heads + shared :]

    def step(self, batch: Columns, cache: KeyValues, table_P: torch.Tensor, width: int) -> Attend:
        return self._cached(batch, cache, table_P, slice(0, batch.rows), None)

    def chunk(self, batch: Columns, cache: KeyValues, table_P: torch.Tensor, piece: Piece) -> Attend:
        if batch.count > 0:  # no padding among the new columns
            return self._cached(batch, cache, table_P, slice(piece.begin, piece.end), _offsets(piece))
        columns = piece.columns
        positions_N = batch.chunk_positions(piece.begin, piece.end, columns).flatten()[piece.index_N]
        offsets = _offsets(piece)

        def attend(layer: int, qkv_NHd: torch.Tensor) -> torch.Tensor:
            parts = self.parts(layer, qkv_NHd, table_P, positions_N)
            for held, part in zip((cache.keys, cache.values), parts[1:], strict=True):
                held[layer][piece.begin : piece.end, :, :columns] = piece.spread(part)
            return self._rows(layer, parts, offsets)

        return attend

    def alone(self, table_P: torch.Tensor, piece: Piece) -> Attend:
        positions_N, offsets = piece.index_N % piece.columns, _offsets(piece)

        def attend(layer: int, qkv_NHd: torch.Tensor) -> torch.Tensor:
            return self._rows(layer, self.parts(layer, qkv_NHd, table_P, positions_N), offsets)

        return attend

    def _cached(
        self, batch: Columns, cache: KeyValues, table_P: torch.Tensor, rows: slice, offsets: torch.Tensor | None
    ) -> Attend:
        """New tokens that see the cache, one of each row or those between ``offsets``."""

        def attend(layer: int, qkv_NHd: torch.Tensor) -> torch.Tensor:
            return ops.decode_attention(
                qkv_NHd,
                table_P,
                *self.norms[layer],
                self.shape.eps,
                batch.padding_B1[rows],
                cache.keys[layer][rows],
                cache.values[layer][rows],
                column=batch.count,
                window=self.shape.windows[layer],
                offsets_B1=offsets,
            )

        return attend

    def _rows(
        self, layer: int, parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor], offsets: torch.Tensor
    ) -> torch.Tensor:
        scale, window = self.shape.width**-0.5, self.shape.windows[layer]
        return ops.rows_attention(*parts, offsets, scale=scale, window=window)[0].flatten(1)


def _offsets(piece: Piece) -> torch.Tensor:
    """Where each row of the joined tokens begins, and their number."""
    return torch.tensor([0, *itertools.accumulate(piece.lengths)])
