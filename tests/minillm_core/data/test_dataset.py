"""A dataset is filtered by length and split the same way each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minillm_core.data.dataset import Dataset, load_dataset
from minillm_core.errors import UserError
from tests.tiny_models import tiny_tokenizer, write_tiny_dataset

TOKENIZER = tiny_tokenizer()


def load(path: Path, **changed: Any) -> Dataset:
    settings: dict[str, Any] = {
        "template": "plain",
        "tokenizer": TOKENIZER,
        "max_prompt_tokens": 200,
        "max_new_tokens": 64,
        "dev_fraction": 0.1,
        "max_dev_rows": 1000,
        "seed": 0,
    }
    return load_dataset(path, **{**settings, **changed})


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "response": answer}) + "\n" for prompt, answer in pairs))
    return path


def test_split_is_a_partition_that_the_seed_decides(tmp_path: Path) -> None:
    path = write_tiny_dataset(tmp_path / "rows", 40)
    first, again, other = load(path), load(path), load(path, seed=1)
    assert first == again
    assert len(first.dev) == len(other.dev) == 4 and len(first.train) == 36
    assert {row.prompt_text for row in first.dev} != {row.prompt_text for row in other.dev}
    assert len({row.prompt_text for row in first.train + first.dev}) == 40
    assert len(load(path, dev_fraction=0.5, max_dev_rows=3).dev) == 3
    assert len(load(path, dev_fraction=0.001).dev) == 1
    assert len(load(path, dev_fraction=0.999).train) == 1


def test_equal_prompts_stay_on_one_side(tmp_path: Path) -> None:
    pairs = [(f"question {index // 4}", f"answer {index}") for index in range(40)]
    for seed in range(5):
        data = load(write(tmp_path / "rows", pairs), dev_fraction=0.2, seed=seed)
        assert len(data.dev) == 8
        assert not {row.prompt_text for row in data.dev} & {row.prompt_text for row in data.train}
    # Every group is larger than the dev set wants.
    assert len(load(write(tmp_path / "rows", pairs), dev_fraction=0.02).dev) == 4


def test_every_turn_is_a_row_and_a_conversation_stays_together(tmp_path: Path) -> None:
    def talk(number: int) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": roles[turn % 2], "content": f"{'qa'[turn % 2]} {number} {turn}"} for turn in range(6)]

    path = tmp_path / "rows"
    path.write_text("".join(json.dumps({"messages": talk(number)}) + "\n" for number in range(20)))
    for seed in range(5):
        data = load(path, template="chat", train_on="all", dev_fraction=0.2, seed=seed)
        assert (len(data.train), len(data.dev), data.counts.rows) == (48, 12, 60)
        of = [{row.response_text.split()[1] for row in part} for part in (data.train, data.dev)]
        assert not of[0] & of[1] and len(of[1]) == 4
    last = load(path, template="chat")
    assert {row.response_text.split()[2] for row in last.train + last.dev} == {"5"}
    path.write_text(json.dumps({"messages": talk(1)}) + "\n")
    with pytest.raises(UserError, match="need two"):
        load(path, template="chat", train_on="all")


def test_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one prompt"):
        load(write(tmp_path / "rows", [("same", "a"), ("same", "b")]))


def test_responses_end_with_eos_or_are_marked(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", [("a", "the river " * 30), ("b", ""), ("c", "x")])
    data = load(path, max_new_tokens=8, dev_fraction=0.3)
    rows = {row.prompt_text: row for row in data.train + data.dev}
    assert rows["a"].truncated and len(rows["a"].response_ids) == 8
    assert TOKENIZER.eos_token_id not in rows["a"].response_ids
    assert rows["a"].response_text == "the river " * 30
    assert rows["b"].response_ids == [TOKENIZER.eos_token_id] and not rows["b"].truncated
    assert rows["c"].response_ids[-1] == TOKENIZER.eos_token_id and len(rows["c"].response_ids) == 2
    exact = load(path, max_new_tokens=2, dev_fraction=0.3)
    assert not next(row for row in exact.train + exact.dev if row.prompt_text == "c").truncated


def test_long_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", [("a", "x"), ("the old bridge " * 20, "x"), ("b", "x")])
    data = load(path, max_prompt_tokens=5)
    assert (len(data.train), len(data.dev), data.dropped_long_prompts) == (1, 1, 1)


def test_no_prompt_fits(tmp_path: Path) -> None:
    pairs = [("river " * 30, "x"), ("river " * 12, "x"), ("river " * 20, "x")]
    shortest = len(TOKENIZER("river " * 12)["input_ids"])
    with pytest.raises(UserError, match=rf"longer than max_prompt_tokens \(5\).* {shortest} tokens") as caught:
        load(write(tmp_path / "rows", pairs), max_prompt_tokens=5)
    assert caught.value.code == "dataset_invalid"
    assert caught.value.failure().category == "user"


def test_eos_inside_the_prompt_changes_no_length(tmp_path: Path) -> None:
    data = load(write_tiny_dataset(tmp_path / "rows"), template="chat")
    row = data.train[0]
    assert TOKENIZER.eos_token_id in row.prompt_ids
    assert TOKENIZER.decode(row.prompt_ids) == row.prompt_text
    assert TOKENIZER.decode(row.response_ids[:-1]) == row.response_text
