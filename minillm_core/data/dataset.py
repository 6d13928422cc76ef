"""A job's dataset: tokenised, filtered by length, split into train and dev."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from minillm_core.data.formats import read_rows
from minillm_core.data.special_tokens import Meaning, SpecialTokens
from minillm_core.data.templates import (
    Template,
    check_template,
    encode_prompt,
    end_token_id,
    prompt_texts,
)
from minillm_core.errors import UserError
from minillm_core.spec import DatasetSpec, TrainingSpec
from minillm_core.spec.rows import TrainOn

_SHARE_TOLD = 0.1
"""Of all rows: where more are cut, left out or repeated, it is a warning."""
_TOKENS_TOLD = 32


@dataclass(frozen=True)
class TokenizedRow:
    """One row. ``response_ids`` ends with the token that ends a response unless ``truncated``."""

    prompt_ids: list[int]
    response_ids: list[int]
    prompt_text: str
    """The prompt as rendered by the template."""
    response_text: str
    """What the dataset's response reads, whole also where ``response_ids`` is cut."""
    truncated: bool


@dataclass(frozen=True)
class DatasetCounts:
    """What became of the rows of a file."""

    rows: int
    train: int
    dev: int
    long_prompts: int
    """Rows left out because their prompt has more than ``max_prompt_tokens``."""
    cut_responses: int
    """Responses of more than ``max_new_tokens``, which are cut and have no end."""
    longest_response: int
    """Tokens of the longest, its end included."""
    duplicates: int
    """Rows equal to one before in prompt and response."""
    special_tokens: dict[str, int]
    """Special tokens whose text stands in prompts or responses, and how often."""
    special_rows: int
    """Rows in which one does."""

    def warnings(self, dataset: DatasetSpec, training: TrainingSpec) -> dict[str, str]:
        """What should be told besides: code -> sentence."""
        found = {}
        kept = self.train + self.dev
        if self.cut_responses > kept * _SHARE_TOLD:
            found["responses_cut"] = (
                f"{self.cut_responses} of {kept} responses have more than max_new_tokens ({training.max_new_tokens}) "
                "tokens and are cut, so that the student does not learn to end them: raise training.max_new_tokens "
                f"(the longest has {self.longest_response}) or shorten the responses"
            )
        if self.long_prompts > self.rows * _SHARE_TOLD:
            found["prompts_left_out"] = (
                f"{self.long_prompts} of {self.rows} rows are left out, whose prompt has more than max_prompt_tokens "
                f"({training.max_prompt_tokens}) tokens: raise training.max_prompt_tokens or shorten the prompts"
            )
        if self.duplicates > self.rows * _SHARE_TOLD:
            found["duplicate_rows"] = f"{self.duplicates} of {self.rows} rows are the same as one before"
        if self.special_rows:
            named = ", ".join(f"{token} {count} times" for token, count in list(self.special_tokens.items())[:5])
            read = {
                "tokens": "each is read as the one token, and an end token at the end of a response as its end",
                "text": "each is read as text",
            }
            other = "text" if dataset.special_tokens == "tokens" else "tokens"
            found["special_tokens_in_text"] = (
                f"{self.special_rows} rows have the text of special tokens ({named}): "
                f"{read[dataset.special_tokens]}; dataset.special_tokens: {other} changes that"
            )
        return found


@dataclass(frozen=True)
class Dataset:
    train: list[TokenizedRow]
    dev: list[TokenizedRow]
    counts: DatasetCounts

    @property
    def dropped_long_prompts(self) -> int:
        return self.counts.long_prompts


def load_dataset(
    path: Path,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    max_new_tokens: int,
    dev_fraction: float,
    max_dev_rows: int,
    seed: int,
    special_tokens: Meaning = "tokens",
    train_on: TrainOn = "last",
) -> Dataset:
    """Read, tokenise and split a file of rows; the same arguments give the same split.

    Responses longer than ``max_new_tokens`` with their end token are cut and marked. Rows of equal
    prompts stay on one side of the split, so that no dev prompt was trained on, and so do the turns
    of one conversation, each of which is a row where ``train_on`` is ``all``.

    Raises UserError ``dataset_invalid`` when a line is wrong, no prompt fits, or no two different
    prompts are left to split; ``template_unavailable`` when the tokenizer lacks the template and
    ``template_invalid`` when its own cannot be used.
    """
    check_template(template, tokenizer)
    end_id = end_token_id(template, tokenizer)
    ends = {end_id, tokenizer.eos_token_id}
    special = SpecialTokens(tokenizer, special_tokens)
    rows: list[TokenizedRow] = []
    lines: list[int] = []
    shortest = longest = dropped = special_rows = 0
    found = Counter[str]()
    examples = read_rows(path, train_on=train_on)
    shown = [special.marked(example) for example in examples] if template == "chat" else examples
    for example, text in zip(examples, prompt_texts(shown, template, tokenizer), strict=True):
        said = special.counted([*(message.content for message in example.messages), example.response])
        found += said
        special_rows += bool(said)
        prompt = encode_prompt(text, template, tokenizer, special)
        if not prompt:
            raise UserError("dataset_invalid", f"{example.place}: the prompt has no tokens", param="/dataset/file")
        if len(prompt) > max_prompt_tokens:
            shortest = min(shortest, len(prompt)) if dropped else len(prompt)
            dropped += 1
            continue
        response, reads = special.response(example.response, ends)
        response.append(end_id)
        longest = max(longest, len(response))
        lines.append(example.line)
        rows.append(
            TokenizedRow(
                prompt_ids=prompt,
                response_ids=response[:max_new_tokens],
                prompt_text=special.unmarked(text),
                response_text=reads,
                truncated=len(response) > max_new_tokens,
            )
        )
    if not rows:
        raise UserError(
            "dataset_invalid",
            f"every prompt is longer than max_prompt_tokens ({max_prompt_tokens}): the shortest of {dropped} has "
            f"{shortest} tokens with the {template} template",
            param="/training/max_prompt_tokens",
        )
    train, dev = _split(rows, lines, dev_fraction, max_dev_rows, seed)
    counts = DatasetCounts(
        rows=len(examples),
        train=len(train),
        dev=len(dev),
        long_prompts=dropped,
        cut_responses=sum(row.truncated for row in rows),
        longest_response=longest,
        duplicates=len(examples) - len({(example.messages, example.response) for example in examples}),
        special_tokens=dict(found.most_common(_TOKENS_TOLD)),
        special_rows=special_rows,
    )
    return Dataset(train, dev, counts)


def _split(
    rows: list[TokenizedRow], lines: list[int], dev_fraction: float, max_dev_rows: int, seed: int
) -> tuple[list[TokenizedRow], list[TokenizedRow]]:
    order = _together(rows, lines)
    if len(order) < 2:
        raise UserError(
            "dataset_invalid",
            f"the {len(rows)} rows that fit have one prompt among them, or conversations that share prompts: training "
            "and dev set need two",
            param="/dataset/file",
        )
    random.Random(f"split:{seed}").shuffle(order)
    wanted = min(max_dev_rows, max(1, round(dev_fraction * len(rows))))
    held: set[int] = set()
    left = len(order)
    for group in order:
        if left > 1 and len(held) + len(group) <= wanted:
            held.update(group)
            left -= 1
    if not held:
        # Every prompt has more rows than the dev set wants: the smallest group is the nearest to it.
        smallest = min(order, key=len)
        held.update(smallest)
    train = [row for index, row in enumerate(rows) if index not in held]
    return train, [row for index, row in enumerate(rows) if index in held]


def _together(rows: list[TokenizedRow], lines: list[int]) -> list[list[int]]:
    """Numbers of the rows that share a prompt or a line of the file, directly or by others, in order of the first."""
    first_of_line: dict[int, int] = {}
    first_of_prompt: dict[tuple[int, ...], int] = {}
    earlier = list(range(len(rows)))

    def first(index: int) -> int:
        while earlier[index] != index:
            earlier[index] = earlier[earlier[index]]
            index = earlier[index]
        return index

    for index, (row, line) in enumerate(zip(rows, lines, strict=True)):
        for other in (first_of_line.setdefault(line, index), first_of_prompt.setdefault(tuple(row.prompt_ids), index)):
            low, high = sorted((first(index), first(other)))
            earlier[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(rows)):
        groups[first(index)].append(index)
    return list(groups.values())
