"""Guards: a run whose numbers look good while its text goes bad must not go on for a week.

In the paper's ablations the reverse KL falls in every variant, also where the student ends up
with short or repeating text. So the guards watch what the loss does not show: the length of the
responses, the repetition within them, and how many rollouts the importance weights really use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from minillm_core.spec import GuardSpec

REPETITION_N = 4


def repetition(responses: Sequence[Sequence[int]], n: int = REPETITION_N) -> tuple[int, int]:
    """Repeated and total ``n``-grams of token ids, each response counted by itself."""
    repeated = total = 0
    for response in responses:
        grams = [tuple(response[start : start + n]) for start in range(len(response) - n + 1)]
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated, total


@dataclass(frozen=True)
class RoundHealth:
    """What one round of rollouts looked like, over all ranks."""

    mean_length: float
    """Response tokens of a row."""
    repetition: float
    """Share of repeated 4-grams, 0 to 1."""
    effective_sample_size: float
    """(sum w)^2 / (n sum w^2) of the importance weights, 0 to 1."""
    reverse_kl: float
    """Nats a token, estimated from the sampled tokens."""


@dataclass
class Guards:
    """Counts rounds in a row past each limit; its state is part of a checkpoint."""

    limits: GuardSpec
    first: RoundHealth | None = None
    past: dict[str, int] = field(default_factory=dict)

    def observe(self, health: RoundHealth) -> dict[str, str]:
        """Name and sentence of each limit that this round is past."""
        if self.first is None:
            self.first = health
        trouble: dict[str, str] = {}
        if not self.limits.enabled:
            return trouble
        if health.effective_sample_size < self.limits.min_effective_sample_size:
            trouble["effective_sample_size"] = (
                f"the importance weights use only {health.effective_sample_size:.1%} of the tokens "
                f"(limit {self.limits.min_effective_sample_size:.1%})"
            )
        drift = _factor(health.mean_length, self.first.mean_length)
        if drift > self.limits.max_length_drift:
            trouble["length"] = (
                f"responses have {health.mean_length:.1f} tokens, {self.first.mean_length:.1f} in the first round "
                f"(limit: a factor of {self.limits.max_length_drift:g}); {self._meanwhile(health)}"
            )
        rise = health.repetition - self.first.repetition
        if rise > self.limits.max_repetition:
            trouble["repetition"] = (
                f"{health.repetition:.1%} of the 4-grams repeat, {self.first.repetition:.1%} in the first round "
                f"(limit: {self.limits.max_repetition:.1%} more); {self._meanwhile(health)}"
            )
        for name in ("effective_sample_size", "length", "repetition"):
            self.past[name] = self.past.get(name, 0) + 1 if name in trouble else 0
        return trouble

    def _meanwhile(self, health: RoundHealth) -> str:
        """What the reverse KL did: where it fell, the loss alone looked like progress."""
        assert self.first is not None
        then, now = self.first.reverse_kl, health.reverse_kl
        return f"the reverse KL {'fell' if now < then else 'went'} from {then:.3f} to {now:.3f} nats a token"

    @property
    def exhausted(self) -> str | None:
        """The first limit that has been passed ``patience`` rounds in a row."""
        return next((name for name, rounds in self.past.items() if rounds >= self.limits.patience), None)

    def state_dict(self) -> dict[str, object]:
        return {"first": None if self.first is None else vars(self.first), "past": dict(self.past)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        first, past = state["first"], state["past"]
        assert isinstance(past, dict)
        self.first = RoundHealth(**first) if isinstance(first, dict) else None
        self.past = dict(past)


def _factor(now: float, then: float) -> float:
    """How many times larger the larger one is; 1 where both are 0."""
    low, high = sorted((now, then))
    return 1.0 if high == 0 else math.inf if low == 0 else high / low
