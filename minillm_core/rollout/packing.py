"""Rows of unequal length as one run of tokens: index tensors, made on the host.

Axes: N tokens of all rows joined, B rows, K columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


def packed_index(first: Sequence[int], stop: Sequence[int], columns: int, device: torch.device) -> torch.Tensor:
    """Flat positions ``row * columns + column`` (N,) of the columns ``first[i] <= column < stop[i]`` of each row."""
    runs = [
        torch.arange(row * columns + begin, row * columns + end)
        for row, (begin, end) in enumerate(zip(first, stop, strict=True))
        if end > begin
    ]
    index_N = torch.cat(runs) if runs else torch.empty(0, dtype=torch.long)
    return index_N.to(device, non_blocking=True)


def row_slices(lengths: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """Consecutive runs of rows with at most ``budget`` tokens together, at least one row each."""
    begin, tokens = 0, 0
    for row, length in enumerate(lengths):
        if row > begin and tokens + length > budget:
            yield begin, row
            begin, tokens = row, 0
        tokens += length
    if begin < len(lengths):
        yield begin, len(lengths)


def padded(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool) -> torch.Tensor:
    """Token ids (B, K), zero where there is no token."""
    columns = max(map(len, rows))
    filled = [
        [0] * (columns - len(row)) + list(row) if left else list(row) + [0] * (columns - len(row)) for row in rows
    ]
    return torch.tensor(filled, dtype=torch.long).to(device, non_blocking=True)
