"""A round: rows whose responses were made together, and the steps that use them.

A round of R rows serves ``inner_epochs * R / rows_per_step`` optimizer steps. Row i belongs to
class ``i % rows_per_step``; every step takes one row of each class, in an order drawn anew for
each class and inner epoch. So all ranks whose number divides ``rows_per_step`` get equal shares
(rank r holds the classes c with ``c % world == r``) and a step has the same rows on any number
of them.

Axes: B rows, T response positions, D hidden width of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class TrainRow:
    """One row as a step needs it. The tensors are those of the rollout and stay as they were then."""

    prompt_ids: list[int]
    response_ids: list[int]
    student_logp_T: torch.Tensor | None = None
    """log q of each response token under the model that sampled it, float32."""
    teacher_logp_T: torch.Tensor | None = None
    """log p likewise, nan at positions where the method does not need it."""
    teacher_hidden_TD: torch.Tensor | None = None
    """The teacher's final hidden states that predict the response tokens."""
    returns_T: torch.Tensor | None = None
    """Rewards-to-go, before whitening."""
    weights_T: torch.Tensor | None = None
    """Importance weights of the response tokens."""

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


_TENSORS = ("student_logp_T", "teacher_logp_T", "teacher_hidden_TD", "returns_T", "weights_T")


def owned_rows(rows: int, rows_per_step: int, rank: int, world: int) -> list[int]:
    """Numbers of a round's rows that rank ``rank`` makes and keeps."""
    return [row for row in range(rows) if (row % rows_per_step) % world == rank]


@dataclass
class Round:
    """This rank's rows of the current round, and how many of its steps are done."""

    number: int
    rows: dict[int, TrainRow] = field(default_factory=dict)
    total_rows: int = 0
    rows_per_step: int = 1
    inner_epochs: int = 1
    seed: int = 0
    steps_done: int = 0

    @property
    def steps(self) -> int:
        return self.inner_epochs * (self.total_rows // self.rows_per_step)

    @property
    def exhausted(self) -> bool:
        return self.steps_done >= self.steps

    def next_rows(self) -> list[TrainRow]:
        """This rank's rows of the next step, in the order of their classes."""
        per_epoch = self.total_rows // self.rows_per_step
        epoch, step = divmod(self.steps_done, per_epoch)
        random = np.random.Generator(np.random.PCG64([self.seed, self.number, epoch]))
        order = random.permuted(np.tile(np.arange(per_epoch), (self.rows_per_step, 1)), axis=1)
        numbers = [int(order[row_class, step]) * self.rows_per_step + row_class for row_class in range(len(order))]
        return [self.rows[number] for number in numbers if number in self.rows]

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, for ``torch.load(weights_only=True)``."""
        rows = {
            number: {
                "prompt_ids": row.prompt_ids,
                "response_ids": row.response_ids,
                **{name: getattr(row, name) for name in _TENSORS},
            }
            for number, row in self.rows.items()
        }
        fields = ("number", "total_rows", "rows_per_step", "inner_epochs", "seed", "steps_done")
        return {"rows": rows, **{name: getattr(self, name) for name in fields}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Round:
        return cls(**{**state, "rows": {number: TrainRow(**row) for number, row in state["rows"].items()}})


def pad_tokens(rows: list[torch.Tensor], width: int) -> torch.Tensor:
    """Stack (T_i,) tensors to (B, width), zero after each row's end."""
    padded_BT = torch.zeros((len(rows), width), dtype=torch.float32)
    for index, row_T in enumerate(rows):
        padded_BT[index, : len(row_T)] = row_T
    return padded_BT


def mask_of(lengths: list[int], width: int) -> torch.Tensor:
    """Boolean (B, width), True on the first ``lengths[b]`` positions."""
    return torch.arange(width)[None, :] < torch.tensor(lengths, dtype=torch.long).reshape(-1, 1)


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from the run's seed and a purpose, so that no generator has state to be saved."""
    numbers = [part if isinstance(part, int) else int.from_bytes(part.encode(), "big") for part in parts]
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
