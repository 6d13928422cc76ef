"""How close answers come to their references as texts: ROUGE-L and exact match.

ROUGE-L is the F-measure of the longest common subsequence of words, the best of a row's references,
the mean over rows times 100. What a word is is a choice, :data:`Tokenizer`:

- ``unicode``: runs of letters, marks and digits of any script after NFKC and lower case; in scripts
  that are written without blanks between words each character is one (UAX #29 leaves those to
  dictionaries). A reference without any word, such as "+", is compared by its characters.
- ``paper``: that of the MiniLLM evaluation (package ``rouge_score``): runs of ``a-z`` and ``0-9``,
  so that a text of another script has no words and scores 0.

Both stem English words of more than three letters (Porter), and agree on every text of ASCII alone.
"""

from __future__ import annotations

import functools
import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import regex
from nltk.stem.porter import PorterStemmer
from rouge_score.tokenize import tokenize as paper_tokenize

Tokenizer = Literal["unicode", "paper"]

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNBROKEN = (
    r"\p{Line_Break=Complex_Context}\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Bopomofo}"
    r"\p{Script=Yi}\p{Script=Tangut}\p{Script=Nushu}\p{Script=Javanese}\p{Script=Balinese}"
)
"""Letters of scripts without blanks between words; Complex_Context are Thai, Lao, Khmer, Burmese and their like."""
_WORD = regex.compile(
    rf"[{_UNBROKEN}&&[\p{{L}}\p{{N}}]]\p{{M}}*|(?:[[\p{{L}}\p{{N}}]--[{_UNBROKEN}]]\p{{M}}*)+", regex.V1
)
_CHARACTER = regex.compile(r"[^\s\p{Cf}]\p{M}*")
_INVISIBLE = regex.compile(r"\p{Cf}+")
"""Joiners, soft hyphens, marks of direction: within a word, and no part of what it says."""
_PUNCTUATION = regex.compile(r"\p{P}+")


@functools.lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    stemmed: str = PorterStemmer().stem(word)
    return stemmed


def words(text: str, tokenizer: Tokenizer = "unicode") -> list[str]:
    """The words of a text, as ROUGE-L compares them."""
    if tokenizer == "paper":
        tokens: list[str] = paper_tokenize(text, None)
    else:
        tokens = _WORD.findall(_normal(text))
    return [_stem(word) if len(word) > 3 and word.isascii() else word for word in tokens]


def rouge_l(answer: str, references: Sequence[str], tokenizer: Tokenizer = "unicode") -> float:
    """Best ROUGE-L F-measure over the references, 0 to 100. Raises ValueError without a reference."""
    if not references:
        raise ValueError("an answer is scored against at least one reference")
    return 100.0 * max(_f_measure(reference, answer, tokenizer) for reference in references)


def _f_measure(reference: str, answer: str, tokenizer: Tokenizer) -> float:
    wanted, found = words(reference, tokenizer), words(answer, tokenizer)
    if not wanted and tokenizer == "unicode":
        wanted, found = _CHARACTER.findall(_normal(reference)), _CHARACTER.findall(_normal(answer))
        if not wanted:
            return float(not found)
    if not wanted or not found:
        return 0.0
    common = longest_common_subsequence(wanted, found)
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length. A column of the table is one integer of a bit for each word (Hyyro 2004): long texts cost little."""
    shorter, longer = sorted((first, second), key=len)
    places: dict[str, int] = {}
    for place, word in enumerate(shorter):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(shorter)) - 1
    column = full
    for word in longer:
        met = column & places.get(word, 0)
        column = ((column + met) | (column - met)) & full
    return len(shorter) - column.bit_count()


def exact_match(answer: str, references: Sequence[str], tokenizer: Tokenizer = "unicode") -> bool:
    """Whether the answer is one of the references, case, punctuation and spacing aside; articles count.

    Under ``paper`` only ASCII punctuation is left aside. Texts of nothing but punctuation are compared as they are.
    """
    plain = _plain(answer, tokenizer)
    return any(plain == _plain(reference, tokenizer) for reference in references)


def _plain(text: str, tokenizer: Tokenizer) -> str:
    if tokenizer == "paper":
        return _spaced(text.lower().translate(_ASCII_PUNCTUATION))
    normal = _normal(text)
    return _spaced(_PUNCTUATION.sub("", normal.translate(_ASCII_PUNCTUATION))) or _spaced(normal)


def _normal(text: str) -> str:
    """Case, width and composition of characters aside."""
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).lower()


def _spaced(text: str) -> str:
    return " ".join(text.split())


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


def score_texts(
    answers: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer = "unicode"
) -> TextScores:
    """Score every answer against its own references. Raises ValueError where their numbers differ."""
    pairs = list(zip(answers, references, strict=True))
    return TextScores(
        rouge_l=sum(rouge_l(answer, given, tokenizer) for answer, given in pairs),
        exact=sum(exact_match(answer, given, tokenizer) for answer, given in pairs),
        rows=len(pairs),
    )
