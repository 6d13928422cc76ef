"""A job's dataset: tokenised, filtered by length, split into train and dev."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from minillm_core.data.formats import read_rows
from minillm_core.data.templates import (
    Template,
    check_template,
    encode_prompt,
    end_token_id,
    prompt_texts,
    response_ids,
)
from minillm_core.errors import UserError


@dataclass(frozen=True)
class TokenizedRow:
    """One row. ``response_ids`` ends with the token that ends a response unless ``truncated``."""

    prompt_ids: list[int]
    response_ids: list[int]
    prompt_text: str
    """The prompt as rendered by the template."""
    response_text: str
    """The dataset's response, whole also where ``response_ids`` is cut."""
    truncated: bool


@dataclass(frozen=True)
class Dataset:
    train: list[TokenizedRow]
    dev: list[TokenizedRow]
    dropped_long_prompts: int
    """Rows left out because their prompt has more than ``max_prompt_tokens``."""


def load_dataset(
    path: Path,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    max_new_tokens: int,
    dev_fraction: float,
    max_dev_rows: int,
    seed: int,
) -> Dataset:
    """Read, tokenise and split a JSONL file; the same arguments give the same split.

    Responses longer than ``max_new_tokens`` with their end token are cut and marked. Rows of equal
    prompts stay on one side of the split, so that no dev prompt was trained on.

    Raises UserError ``dataset_invalid`` when a line is wrong, no prompt fits, or no two different
    prompts are left to split; ``template_unavailable`` when the tokenizer lacks the template and
    ``template_invalid`` when its own cannot be used.
    """
    check_template(template, tokenizer)
    end_id = end_token_id(template, tokenizer)
    rows: list[TokenizedRow] = []
    shortest = 0
    dropped = 0
    examples = read_rows(path)
    for example, text in zip(examples, prompt_texts(examples, template, tokenizer), strict=True):
        prompt = encode_prompt(text, template, tokenizer)
        if not prompt:
            raise UserError("dataset_invalid", f"line {example.line}: the prompt has no tokens", param="/dataset/file")
        if len(prompt) > max_prompt_tokens:
            shortest = min(shortest, len(prompt)) if dropped else len(prompt)
            dropped += 1
            continue
        response = response_ids(example.response, template, tokenizer, end_id=end_id)
        rows.append(
            TokenizedRow(
                prompt_ids=prompt,
                response_ids=response[:max_new_tokens],
                prompt_text=text,
                response_text=example.response,
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
    train, dev = _split(rows, dev_fraction, max_dev_rows, seed)
    return Dataset(train, dev, dropped)


def _split(
    rows: list[TokenizedRow], dev_fraction: float, max_dev_rows: int, seed: int
) -> tuple[list[TokenizedRow], list[TokenizedRow]]:
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[tuple(row.prompt_ids)].append(index)
    if len(groups) < 2:
        raise UserError(
            "dataset_invalid",
            f"the {len(rows)} rows that fit have one prompt among them: training and dev set need two",
            param="/dataset/file",
        )
    order = list(groups.values())
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
