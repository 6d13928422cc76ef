"""From rows to the micro-batches of one step.

Axes: B rows, T positions, M tokens of all rows joined, N of them that count, D hidden width of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minillm_core.data.batching import plan_microbatches
from minillm_core.models.packed import PackedRows
from minillm_core.rollout.decoder import Decoder
from minillm_core.train.rounds import TrainRow
from minillm_core.train.student import MicroBatch


def plan(rows: Sequence[TrainRow], budget: int) -> list[list[int]]:
    """Row numbers of each micro-batch, by padded size."""
    return plan_microbatches([row.length for row in rows], budget)


def response_batch(
    rows: Sequence[TrainRow],
    advantages: Sequence[torch.Tensor] | None,
    teacher: Decoder | None,
    *,
    device: torch.device,
) -> MicroBatch:
    """Join ``rows`` and select the positions that predict their response tokens.

    Nothing is read behind a row's last token, so that it is not fed. ``advantages`` are (T_i,)
    tensors, given for rollouts alone. Rows without hidden states of the teacher get them from
    ``teacher``, where it is given.
    """
    ids: list[int] = []
    lengths: list[int] = []
    select: list[int] = []
    for row in rows:
        fed = [*row.prompt_ids, *row.response_ids[:-1]]
        first = len(ids) + len(row.prompt_ids) - 1
        select += range(first, first + len(row.response_ids))
        ids += fed
        lengths.append(len(fed))
    targets = [token for row in rows for token in row.response_ids]
    teacher_hidden = [row.teacher_hidden_TD for row in rows]
    if teacher is not None and any(hidden_TD is None for hidden_TD in teacher_hidden):
        sequences = [[*row.prompt_ids, *row.response_ids[:-1]] for row in rows]
        scored = teacher.score(sequences, [len(row.prompt_ids) - 1 for row in rows])
        # An empty response has nothing to predict, and its prompt was scored all the same.
        teacher_hidden = [hidden_TD[: len(row.response_ids)] for row, hidden_TD in zip(rows, scored, strict=True)]

    def joined(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        return None if any(tensor is None for tensor in tensors) else torch.cat(list(tensors)).to(device)  # type: ignore[arg-type]

    return MicroBatch(
        input_ids_M=_on(device, ids),
        rows=PackedRows(lengths, device),
        select_N=_on(device, select),
        targets_N=_on(device, targets),
        teacher_hidden_ND=joined(teacher_hidden),
        old_logp_N=joined([row.student_logp_T for row in rows]),
        advantages_N=None if advantages is None else joined(advantages),
        weights_N=joined([row.weights_T for row in rows]),
    )


def _on(device: torch.device, numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


def corpus_batch(blocks_BT: torch.Tensor, teacher: Decoder | None, *, device: torch.device) -> MicroBatch:
    """Blocks of plain text (B, T): every token after the first is predicted and counts.

    With ``teacher`` the batch has its hidden states too.
    """
    ids_BT = blocks_BT.long().to(device)
    rows, width = ids_BT.shape
    teacher_hidden = None if teacher is None else teacher.score(blocks_BT[:, :-1].tolist(), [0] * rows)
    return MicroBatch(
        input_ids_M=ids_BT[:, :-1].flatten(),
        rows=PackedRows([width - 1] * rows, device),
        select_N=torch.arange(rows * (width - 1), device=device),
        targets_N=ids_BT[:, 1:].flatten(),
        teacher_hidden_ND=None if teacher_hidden is None else torch.cat(teacher_hidden),
        corpus=True,
    )


def idle_batch(token_id: int, width: int | None, *, policy: bool, device: torch.device) -> MicroBatch:
    """One token and nothing counted: a rank without rows left joins the collectives of the others.

    ``width`` is the teacher's hidden width where the loss uses the teacher.
    """
    empty = torch.zeros(0, device=device)
    return MicroBatch(
        input_ids_M=torch.tensor([token_id], device=device),
        rows=PackedRows([1], device),
        select_N=torch.zeros(0, dtype=torch.long, device=device),
        targets_N=torch.zeros(0, dtype=torch.long, device=device),
        teacher_hidden_ND=None if width is None else torch.zeros(0, width, device=device),
        old_logp_N=empty if policy else None,
        advantages_N=empty if policy else None,
        weights_N=empty if policy else None,
    )
