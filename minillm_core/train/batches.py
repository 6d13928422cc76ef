"""From rows to the micro-batches of one step.

Axes: B rows, T positions, N counted tokens, D hidden width of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from minillm_core.data.batching import pad_rows, plan_microbatches
from minillm_core.models.families import hidden_states
from minillm_core.train.rounds import TrainRow
from minillm_core.train.student import MicroBatch


def plan(rows: Sequence[TrainRow], budget: int) -> list[list[int]]:
    """Row numbers of each micro-batch, by padded size."""
    return plan_microbatches([row.length for row in rows], budget)


def response_batch(
    rows: Sequence[TrainRow], advantages: Sequence[torch.Tensor] | None, *, pad_id: int, device: torch.device
) -> MicroBatch:
    """Pad ``rows`` on the right and select the positions that predict their response tokens.

    ``advantages`` are (T_i,) tensors, given for rollouts alone.
    """
    padded = pad_rows([row.prompt_ids for row in rows], [row.response_ids for row in rows], pad_id=pad_id)
    select_N = padded.predicts_response_BT.flatten().nonzero().squeeze(1)
    targets_N = padded.input_ids_BT[padded.response_mask_BT]

    def joined(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        return None if any(tensor is None for tensor in tensors) else torch.cat(list(tensors)).to(device)  # type: ignore[arg-type]

    return MicroBatch(
        input_ids_BT=padded.input_ids_BT.to(device),
        attention_mask_BT=padded.attention_mask_BT.to(device),
        position_ids_BT=padded.position_ids_BT.to(device),
        select_N=select_N.to(device),
        targets_N=targets_N.to(device),
        teacher_hidden_ND=joined([row.teacher_hidden_TD for row in rows]),
        old_logp_N=joined([row.student_logp_T for row in rows]),
        advantages_N=None if advantages is None else joined(advantages),
        weights_N=joined([row.weights_T for row in rows]),
    )


def corpus_batch(blocks_BT: torch.Tensor, *, device: torch.device) -> MicroBatch:
    """Blocks of plain text (B, T): every token after the first is predicted and counts."""
    ids_BT = blocks_BT.long()
    rows, width = ids_BT.shape
    positions_BT = torch.arange(width).expand(rows, width)
    counted_BT = positions_BT < width - 1
    return MicroBatch(
        input_ids_BT=ids_BT.to(device),
        attention_mask_BT=torch.ones_like(ids_BT).to(device),
        position_ids_BT=positions_BT.to(device),
        select_N=counted_BT.flatten().nonzero().squeeze(1).to(device),
        targets_N=ids_BT[:, 1:].flatten().to(device),
        corpus=True,
    )


def idle_batch(token_id: int, width: int | None, *, policy: bool, device: torch.device) -> MicroBatch:
    """One token and nothing counted: a rank without rows left joins the collectives of the others.

    ``width`` is the teacher's hidden width where the loss uses the teacher.
    """
    ids_BT = torch.tensor([[token_id]], device=device)
    empty = torch.zeros(0, device=device)
    return MicroBatch(
        input_ids_BT=ids_BT,
        attention_mask_BT=torch.ones_like(ids_BT),
        position_ids_BT=torch.zeros_like(ids_BT),
        select_N=torch.zeros(0, dtype=torch.long, device=device),
        targets_N=torch.zeros(0, dtype=torch.long, device=device),
        teacher_hidden_ND=None if width is None else torch.zeros(0, width, device=device),
        old_logp_N=empty if policy else None,
        advantages_N=empty if policy else None,
        weights_N=empty if policy else None,
    )


def with_teacher(batch: MicroBatch, teacher: nn.Module) -> MicroBatch:
    """The same batch with the teacher's hidden states at the counted positions: one forward pass."""
    with torch.no_grad():
        hidden_BTD = hidden_states(teacher, batch.input_ids_BT, batch.attention_mask_BT, batch.position_ids_BT)
    fields = {**vars(batch), "teacher_hidden_ND": hidden_BTD.flatten(0, 1).index_select(0, batch.select_N)}
    return MicroBatch(**fields)
