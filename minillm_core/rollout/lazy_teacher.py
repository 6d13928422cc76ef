"""The teacher of one decoding batch, called only where it decides a token and once at the end.

Axes: B rows, K columns of a chunk, T response positions, D hidden width.
"""

from __future__ import annotations

import torch

from minillm_core.rollout.decoder import Decoder
from minillm_core.rollout.packing import padded


class LazyTeacher:
    """The lazy teacher of one batch: what it has been fed, and the hidden states it gave."""

    def __init__(self, teacher: Decoder, prompts: list[list[int]], limit: int) -> None:
        self._teacher = teacher
        self._prompts = prompts
        self._limit = limit
        self.rows = list(range(len(prompts)))
        """Rows of the batch that lie in its cache, ascending; all of them before the first call."""
        self.fed = 0
        """Response tokens fed so far."""
        self.started = False
        self.hidden_BTD = torch.empty(0)

    def catch_up(self, upto: int, tokens_TB: torch.Tensor, ends: dict[int, int]) -> torch.Tensor:
        """Feed the response tokens before position ``upto``; hidden states (rows, D) that predict ``upto``.

        ``ends``: lengths of the rows known to have ended, of which no more than is needed is fed.
        """
        device = self._teacher.device
        stops = {row: min(upto, ends.get(row, upto + 1) - 1) for row in self.rows}
        if not self.started:
            count = len(self.rows)
            longest = max(map(len, self._prompts))
            self._teacher.start(count, longest + self._limit - 1)
            self.hidden_BTD = torch.empty(
                count, self._limit, self._teacher.hidden_size, dtype=self._teacher.dtype, device=device
            )
            first = [longest - len(prompt) for prompt in self._prompts]
            stop = [longest + stops[row] for row in self.rows]
            chunk_BK = torch.cat((padded(self._prompts, device, left=True), tokens_TB[:upto].t()), dim=1)
            hidden_BKD = self._teacher.chunk(chunk_BK, first, stop)[:, longest - 1 :]
            self.hidden_BTD[:, : upto + 1] = hidden_BKD
            self.started = True
        else:
            places = [place for place, row in enumerate(self.rows) if stops[row] > self.fed]
            if len(places) < len(self.rows):
                self._teacher.retire(torch.tensor(places, dtype=torch.long).to(device, non_blocking=True))
                self.rows = [self.rows[place] for place in places]
            rows_B = torch.tensor(self.rows, dtype=torch.long).to(device, non_blocking=True)
            chunk_BK = tokens_TB[self.fed : upto].index_select(1, rows_B).t()
            stop = [stops[row] - self.fed for row in self.rows]
            hidden_BKD = self._teacher.chunk(chunk_BK, [0] * len(stop), stop)
            self.hidden_BTD[:, self.fed + 1 : upto + 1].index_copy_(0, rows_B, hidden_BKD)
        self.fed = upto
        return hidden_BKD[:, -1]

    def close(self, lengths: list[int], tokens_TB: torch.Tensor) -> None:
        """Feed what is left of each row, its last token excepted."""
        upto = max((lengths[row] - 1 for row in self.rows), default=0)
        if upto > self.fed:
            self.catch_up(upto, tokens_TB, dict(enumerate(lengths)))
