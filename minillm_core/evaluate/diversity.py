"""How varied answers are: distinct n-grams, repetition, lengths.

All count token ids, the end token left out, so that they mean the same in every script.
Distinct-n is the paper's Dist-n: different n-grams over all n-grams of all answers, times 100.
It falls as more text is counted: compare it only between sets of the same prompts.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

ORDERS = (1, 2, 3, 4)
REPETITION_ORDER = 4


def _ngrams(tokens: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    """All runs of ``n`` tokens, in order; none where there are fewer."""
    return (tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


@dataclass(frozen=True)
class Diversity:
    """Counts over responses; those of several ranks join with :meth:`merged`."""

    distinct: dict[int, set[tuple[int, ...]]] = field(default_factory=lambda: {n: set() for n in ORDERS})
    total: dict[int, int] = field(default_factory=lambda: dict.fromkeys(ORDERS, 0))
    repeated: int = 0
    """n-grams of order :data:`REPETITION_ORDER` seen earlier in their own response."""
    lengths: tuple[int, ...] = ()
    """Tokens of each response, the end token left out."""
    truncated: int = 0

    @classmethod
    def merged(cls, parts: Iterable[Diversity]) -> Diversity:
        parts = list(parts)
        return cls(
            distinct={n: set().union(*(part.distinct[n] for part in parts)) for n in ORDERS},
            total={n: sum(part.total[n] for part in parts) for n in ORDERS},
            repeated=sum(part.repeated for part in parts),
            lengths=tuple(length for part in parts for length in part.lengths),
            truncated=sum(part.truncated for part in parts),
        )

    def values(self) -> dict[str, float]:
        """The report's numbers.

        ``distinct_1`` to ``distinct_4``, 0 to 100, each left out where no response is that long;
        ``repetition_4`` and ``truncated`` (responses that reached the token limit), shares from 0
        to 1; ``response_tokens_mean``, ``_median`` and ``_std`` (of the population). Nothing
        without responses.
        """
        if not self.lengths:
            return {}
        found = {f"distinct_{n}": 100.0 * len(self.distinct[n]) / self.total[n] for n in ORDERS if self.total[n]}
        if self.total[REPETITION_ORDER]:
            found[f"repetition_{REPETITION_ORDER}"] = self.repeated / self.total[REPETITION_ORDER]
        return found | {
            "response_tokens_mean": statistics.fmean(self.lengths),
            "response_tokens_median": float(statistics.median(self.lengths)),
            "response_tokens_std": statistics.pstdev(self.lengths),
            "truncated": self.truncated / len(self.lengths),
        }


def measure_diversity(
    responses: Sequence[Sequence[int]], truncated: Sequence[bool], eos_ids: Collection[int]
) -> Diversity:
    """Count the responses, each with its final end token or without. Raises ValueError where the numbers differ."""
    if len(responses) != len(truncated):
        raise ValueError(f"{len(responses)} responses and {len(truncated)} marks of truncation")
    texts = [response[:-1] if response and response[-1] in eos_ids else response for response in responses]
    distinct: dict[int, set[tuple[int, ...]]] = {n: set() for n in ORDERS}
    total = dict.fromkeys(ORDERS, 0)
    repeated = 0
    for text in texts:
        for n in ORDERS:
            own = set(_ngrams(text, n))
            count = max(0, len(text) - n + 1)
            distinct[n] |= own
            total[n] += count
            if n == REPETITION_ORDER:
                repeated += count - len(own)
    return Diversity(distinct, total, repeated, tuple(map(len, texts)), sum(map(bool, truncated)))
