"""Which rows come next: an endless shuffled order that every rank computes alike."""

from __future__ import annotations

from typing import TypedDict

import numpy as np


class CursorState(TypedDict):
    n: int
    seed: int
    epoch: int
    position: int


class EpochCursor:
    """Walks through ``n`` rows in a new random order each epoch, for ever.

    The order depends on ``seed`` and the number of the epoch alone, so ranks agree without
    talking and a resumed run continues with the row that would have come next.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError("there are no rows to walk through")
        self._n = n
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._shuffled()

    def take(self, k: int) -> list[int]:
        """The next ``k`` row numbers, over the end of an epoch where need be."""
        taken: list[int] = []
        while len(taken) < k:
            if self._position == self._n:
                self._epoch += 1
                self._position = 0
                self._order = self._shuffled()
            rows = self._order[self._position : self._position + k - len(taken)]
            taken += rows.tolist()
            self._position += len(rows)
        return taken

    def state_dict(self) -> CursorState:
        return {"n": self._n, "seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: CursorState) -> None:
        """Continue where ``state`` was taken. Raises ValueError when it is of other rows or another seed."""
        if (state["n"], state["seed"]) != (self._n, self._seed):
            raise ValueError(
                f"the state is of {state['n']} rows with seed {state['seed']}, not of {self._n} with {self._seed}"
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        return np.random.Generator(np.random.PCG64([self._seed, self._epoch])).permutation(self._n)
