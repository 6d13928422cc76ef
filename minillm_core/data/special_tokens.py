"""Special tokens whose text stands in a dataset: one token each, or the text that they look like.

A tokenizer makes one token of ``<|im_end|>`` wherever it reads it, so that a row that only talks about the token ends a
turn. ``tokens`` leaves that as it is, for datasets that were written so; ``text`` takes every special token out of what
a row says, and leaves those that the chat template writes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from minillm_core.spec.rows import Example, Message

Meaning = Literal["text", "tokens"]

_MARK = "\ufdd0"
"""No character of any script: it keeps the text of a token apart from the token while a template is rendered."""


class SpecialTokens:
    """The special tokens of a tokenizer, and what their texts mean in rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, meaning: Meaning = "tokens") -> None:
        added = tokenizer.added_tokens_decoder.items()
        self._tokenizer = tokenizer
        self.meaning = meaning
        self._tokens = {token.content: (id_, token) for id_, token in added if token.special and token.content.strip()}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def counted(self, texts: Iterable[str]) -> Counter[str]:
        """How often the text of each special token stands in ``texts``."""
        return Counter(match for text in texts for match in self._any.findall(text))

    def marked(self, example: Example) -> Example:
        """The row for a chat template: texts of special tokens are kept apart where they mean text."""
        if self.meaning == "tokens" or not any(self._any.search(message.content) for message in example.messages):
            return example
        messages = [Message(message.role, self._any.sub(_apart, message.content)) for message in example.messages]
        return replace(example, messages=tuple(messages))

    def unmarked(self, text: str) -> str:
        """A rendered prompt as it reads."""
        return text.replace(_MARK, "")

    def rendered_ids(self, text: str) -> list[int]:
        """Token ids of a rendered prompt of :meth:`marked` rows, without those that open or close a text."""
        if _MARK not in text:
            return self._ids(text)
        ids: list[int] = []
        place = 0
        skip = False
        for match in self._any.finditer(text):
            id_, token = self._tokens[match.group()]
            piece = text[place : match.start()]
            # As the tokenizer does: some special tokens take the blanks beside them away.
            piece = piece.lstrip() if skip else piece
            ids += [*self.plain_ids(self.unmarked(piece.rstrip() if token.lstrip else piece)), id_]
            place, skip = match.end(), token.rstrip
        rest = text[place:]
        return ids + self.plain_ids(self.unmarked(rest.lstrip() if skip else rest))

    def plain_ids(self, text: str, *, opened: bool = False) -> list[int]:
        """Token ids of a text in which no special token is read; ``opened`` adds those that open or close a text."""
        if not text and not opened:
            return []
        found = self._tokenizer(text, add_special_tokens=opened, split_special_tokens=True)
        ids: list[int] = found["input_ids"]
        return ids

    def response(self, text: str, ends: Collection[int]) -> tuple[list[int], str]:
        """Token ids of a response without the token that ends it, and what it reads.

        Where special tokens are read, those among ``ends`` that stand at its end are the end that is added anyway.
        """
        if not self._any.search(text):
            return self._ids(text), text
        if self.meaning == "text":
            return self.plain_ids(text), text
        ids = self._ids(text)
        stripped = self._ids(text.rstrip())
        if stripped and stripped[-1] in ends:
            ids = stripped
        while ids and ids[-1] in ends:
            ids.pop()
        return ids, self._any.sub("", text).strip()

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _apart(match: re.Match[str]) -> str:
    # Behind the first character: tokens of one character have no text that is not the token.
    return match.group()[0] + _MARK + match.group()[1:]
