"""Micro-batches by token budget, and their padded tensors.

Axes: B rows, T positions (prompt, response and padding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from minillm_core.models.families import position_ids_from_mask


def plan_microbatches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split rows into groups whose padded size, rows times longest, is at most ``budget`` tokens.

    Rows are sorted by length, so that little is padded, longest first, so that a batch that does
    not fit into memory is the first one and not the last. A row above the budget stands alone.
    Returns row numbers; every row is in exactly one group. The order of equal lengths is that of
    the rows.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    groups: list[list[int]] = []
    for row in order:
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


@dataclass(frozen=True)
class PaddedBatch:
    """Rows as tensors. Masks come from the rows' lengths; what is padding is told by no token id."""

    input_ids_BT: torch.Tensor
    attention_mask_BT: torch.Tensor
    """int64, 1 on prompt and response."""
    position_ids_BT: torch.Tensor
    """0 at the first token of each row's prompt, wherever the padding is."""
    response_mask_BT: torch.Tensor
    """bool, True on the tokens of the response."""

    @property
    def predicts_response_BT(self) -> torch.Tensor:
        """bool, True where the next token belongs to the response: the positions whose hidden states count."""
        shifted_BT = torch.zeros_like(self.response_mask_BT)
        shifted_BT[:, :-1] = self.response_mask_BT[:, 1:]
        return shifted_BT

    def to(self, device: torch.device | str) -> PaddedBatch:
        return PaddedBatch(
            self.input_ids_BT.to(device),
            self.attention_mask_BT.to(device),
            self.position_ids_BT.to(device),
            self.response_mask_BT.to(device),
        )


def pad_rows(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    pad_id: int,
    side: Literal["left", "right"] = "right",
    device: torch.device | str = "cpu",
) -> PaddedBatch:
    """Join every prompt with its response and pad all rows to the longest, with ``pad_id`` (any valid id).

    Either may be empty for a row, not both for all. Raises ValueError when there are no tokens.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows), default=0)
    if width == 0:
        raise ValueError("a batch needs at least one token")
    input_ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
    response_mask_BT = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, (row, response) in enumerate(zip(rows, responses, strict=True)):
        start = width - len(row) if side == "left" else 0
        end = start + len(row)
        input_ids_BT[index, start:end] = torch.tensor(row, dtype=torch.long)
        attention_mask_BT[index, start:end] = 1
        response_mask_BT[index, end - len(response) : end] = True
    position_ids_BT = position_ids_from_mask(attention_mask_BT)
    return PaddedBatch(input_ids_BT, attention_mask_BT, position_ids_BT, response_mask_BT).to(device)
