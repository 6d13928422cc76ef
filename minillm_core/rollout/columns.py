"""Where a decoding batch stands: columns, padding and what each column may see.

Every row writes the same column at the same time; a row's position is the column less its padding.
All that changes from step to step lies in tensors that are updated in place, so that a step has the
same shapes and addresses as the one before (a CUDA graph can hold it) and waits for nothing.

Axes: B rows, K new columns, W columns of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

WIDTH_STEP = 64
"""Attention looks at a multiple of this many columns, so that a step's shapes change rarely."""


def padded_width(columns: int) -> int:
    """``columns`` rounded up to whole steps."""
    return -(-columns // WIDTH_STEP) * WIDTH_STEP


class Columns:
    """The columns of one batch; ``windows`` are the sliding windows in use, None for full attention."""

    def __init__(
        self, rows: int, columns: int, windows: frozenset[int | None], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.rows = rows
        self.count = 0
        """Columns written, known on the host."""
        self.width = padded_width(columns)
        self.next_1 = torch.zeros(1, dtype=torch.long, device=device)
        """``count`` on the device."""
        self.padding_B1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._columns_W = torch.arange(self.width, device=device)
        self._lowest = torch.finfo(dtype).min
        self._device, self._dtype = device, dtype
        self._step_bias = {
            window: torch.full((rows, self.width), self._lowest, dtype=dtype, device=device) for window in windows
        }

    def take_padding(self, first: Sequence[int]) -> None:
        """Row i has ``first[i]`` columns of padding; before anything is written."""
        self.padding_B1.copy_(torch.tensor(first, dtype=torch.long).unsqueeze(1), non_blocking=True)

    def chunk_positions(self, begin: int, end: int, columns: int) -> torch.Tensor:
        """Positions (rows, K) of the next K columns of rows ``begin`` to ``end``; zero where there is padding."""
        columns_K = self._columns_W[self.count : self.count + columns]
        return (columns_K - self.padding_B1[begin:end]).clamp_(min=0)

    def chunk_bias(self, begin: int, end: int, columns: int, window: int | None) -> torch.Tensor:
        """What the next K columns may see: (rows, 1, K, count + K), zero or the lowest number."""
        keys_W = self._columns_W[: self.count + columns]
        queries_K1 = self._columns_W[self.count : self.count + columns].unsqueeze(1)
        seen = (keys_W <= queries_K1) & (keys_W >= self.padding_B1[begin:end].unsqueeze(2))
        if window is not None:
            seen &= keys_W > queries_K1 - window
        bias = torch.zeros(seen.shape, dtype=self._dtype, device=self._device).masked_fill_(~seen, self._lowest)
        return bias.unsqueeze(1)

    def close_chunk(self, columns: int) -> None:
        """The chunk is written: later columns see it."""
        self.count += columns
        self.next_1 += columns
        for window, bias_BW in self._step_bias.items():
            seen = (self._columns_W < self.count) & (self._columns_W >= self.padding_B1)
            if window is not None:
                seen &= self._columns_W >= self.count - window
            bias_BW[: self.rows].fill_(self._lowest).masked_fill_(seen, 0.0)

    def open_step(self) -> int:
        """Let rows see the column that is about to be written; returns the width to attend to."""
        for window, bias_BW in self._step_bias.items():
            bias_BW.index_fill_(1, self.next_1, 0.0)
            if window is not None and self.count >= window:
                bias_BW.index_fill_(1, self.next_1 - window, self._lowest)
        return min(self.width, padded_width(self.count + 1))

    def step_bias(self, window: int | None, width: int) -> torch.Tensor:
        """(rows, width), zero or the lowest number."""
        return self._step_bias[window][: self.rows, :width]

    def step_positions(self) -> torch.Tensor:
        """Position (rows,) of the column being written."""
        return (self.next_1 - self.padding_B1).squeeze(1)

    def close_step(self) -> None:
        """The column is written."""
        self.count += 1
        self.next_1 += 1

    def retire(self, keep: torch.Tensor) -> None:
        """Keep some rows, moved to the front."""
        self.rows = keep.shape[0]
        self.padding_B1 = self.padding_B1[keep]
        for bias_BW in self._step_bias.values():
            bias_BW[: self.rows] = bias_BW[keep]
