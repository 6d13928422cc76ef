"""Keys and values of a decoding batch in memory that is kept from one batch to the next.

Axes: B rows, H key-value heads, W columns, d width of a head.
"""

from __future__ import annotations

import torch


class KeyValues:
    """One tensor for the keys and one for the values of each layer: (B, H, W, d), rows in front."""

    def __init__(self, layers: int, heads: int, head_width: int, device: torch.device, dtype: torch.dtype) -> None:
        self._shape = (layers, heads, head_width)
        self._device, self._dtype = device, dtype
        self._memory = torch.empty(0, dtype=dtype, device=device)
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.rows = 0

    def start(self, rows: int, columns: int) -> None:
        """Empty cache for ``rows`` rows; memory grows only when no earlier batch was as large."""
        layers, heads, head_width = self._shape
        needed = 2 * layers * rows * heads * columns * head_width
        if self._memory.numel() < needed:
            self._memory = torch.empty(0, dtype=self._dtype, device=self._device)
            self._memory = torch.empty(needed, dtype=self._dtype, device=self._device)
        # Columns that are masked count zero times their value: that must not be a stale nan.
        tensors = self._memory[:needed].zero_().view(2, layers, rows, heads, columns, head_width)
        self.keys, self.values = list(tensors[0]), list(tensors[1])
        self.rows = rows

    def retire(self, keep: torch.Tensor) -> None:
        """Keep the rows ``keep`` (ascending), moved to the front in place."""
        self.rows = keep.shape[0]
        for layers in (self.keys, self.values):
            for index, tensor in enumerate(layers):
                tensor[: self.rows] = tensor[keep]
                layers[index] = tensor[: self.rows]

    def release(self) -> None:
        """Give the memory back."""
        self._memory = torch.empty(0, dtype=self._dtype, device=self._device)
        self.keys, self.values = [], []
