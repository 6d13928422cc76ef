"""How close answers come to their references as texts: ROUGE-L and exact match.

ROUGE-L as the MiniLLM evaluation takes it: the ``rouge_score`` package, its stemmer on, the
F-measure of the longest common subsequence of words, the best of a row's references, the mean
over rows times 100. Its words are runs of ``a-z`` and ``0-9``: a text of another script scores 0.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rouge_score.rouge_scorer import RougeScorer

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Best ROUGE-L F-measure over the references, 0 to 100. Raises ValueError without a reference."""
    if not references:
        raise ValueError("an answer is scored against at least one reference")
    return 100.0 * max(float(_scorer().score(reference, answer)["rougeL"].fmeasure) for reference in references)


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether the answer is one of the references, case, ASCII punctuation and spacing aside; articles count."""
    plain = _plain(answer)
    return any(plain == _plain(reference) for reference in references)


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())


@dataclass(frozen=True)
class TextScores:
    """Sums over rows; those of several ranks add up with :meth:`merged`."""

    rouge_l: float = 0.0
    exact: int = 0
    rows: int = 0

    @classmethod
    def merged(cls, parts: Iterable[TextScores]) -> TextScores:
        parts = list(parts)
        return cls(
            sum(part.rouge_l for part in parts), sum(part.exact for part in parts), sum(part.rows for part in parts)
        )

    def values(self) -> dict[str, float]:
        """``rouge_l`` and ``exact_match``, both 0 to 100; nothing where there are no rows."""
        if self.rows == 0:
            return {}
        return {"rouge_l": self.rouge_l / self.rows, "exact_match": 100.0 * self.exact / self.rows}


def score_texts(answers: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """Score every answer against its own references. Raises ValueError where their numbers differ."""
    pairs = list(zip(answers, references, strict=True))
    return TextScores(
        rouge_l=sum(rouge_l(answer, given) for answer, given in pairs),
        exact=sum(exact_match(answer, given) for answer, given in pairs),
        rows=len(pairs),
    )
