"""How likely a model finds the dataset's own responses.

Mean cross-entropy of the tokens of each response, then the mean over rows, so that a long
response weighs no more than a short one. The token that ends a response counts; the published
MiniLLM evaluation leaves it out, because its mask takes every end token for padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from minillm_core.evaluate.scoring import Row, token_log_probs


@dataclass(frozen=True)
class LmLoss:
    """Sums over rows; those of several ranks add up with :meth:`merged`."""

    loss: float = 0.0
    """Sum over rows of the row's mean cross-entropy, nats per token."""
    rows: int = 0
    tokens: int = 0

    @classmethod
    def merged(cls, parts: Iterable[LmLoss]) -> LmLoss:
        parts = list(parts)
        return cls(
            sum(part.loss for part in parts), sum(part.rows for part in parts), sum(part.tokens for part in parts)
        )

    def values(self) -> dict[str, float]:
        """``lm_loss`` in nats per token; nothing where no row has a response."""
        return {"lm_loss": self.loss / self.rows} if self.rows else {}


def lm_loss(
    model: PreTrainedModel, rows: Sequence[Row], *, vocab: int | None = None, batch_tokens: int = 8192
) -> LmLoss:
    """Cross-entropy of the rows' own responses; a row with an empty response does not count."""
    log_probs = token_log_probs(
        model,
        [row.prompt_ids for row in rows],
        [row.response_ids for row in rows],
        vocab=vocab,
        batch_tokens=batch_tokens,
    )
    scored = [logp_L for logp_L in log_probs if len(logp_L) > 0]
    return LmLoss(
        loss=sum(float(-logp_L.mean()) for logp_L in scored),
        rows=len(scored),
        tokens=sum(len(logp_L) for logp_L in scored),
    )
