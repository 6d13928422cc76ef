"""The example dataset is fit to train on: varied, complete, of sensible length."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from minillm_core.spec import JobSpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ROWS = [json.loads(line) for line in (EXAMPLES / "instructions.jsonl").read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_there_are_enough_rows_with_the_right_keys() -> None:
    assert len(ROWS) >= 200
    assert all(set(row) == {"instruction", "input", "output"} for row in ROWS)
    assert all(isinstance(value, str) for row in ROWS for value in row.values())


def test_instructions_are_unique() -> None:
    assert len({" ".join(words(row["instruction"])) for row in ROWS}) == len(ROWS)


def test_no_two_tasks_are_nearly_the_same() -> None:
    seen: list[tuple[frozenset[str], str]] = []
    for row in ROWS:
        mine = frozenset(words(row["instruction"] + " " + row["input"] + " " + row["output"]))
        for other, instruction in seen:
            assert len(mine & other) / len(mine | other) < 0.8, (instruction, row["instruction"])
        seen.append((mine, row["instruction"]))


def test_nothing_is_empty_or_untidy() -> None:
    for row in ROWS:
        for value in (row["instruction"], row["output"]):
            assert value.strip() == value != ""


def test_lengths_suit_short_prompts_and_answers() -> None:
    lengths = sorted(len(words(row["output"])) for row in ROWS)
    assert lengths[len(lengths) // 2] >= 10
    assert lengths[-1] <= 60
    assert max(len(words(row["instruction"] + " " + row["input"])) for row in ROWS) <= 60


def test_many_answers_share_an_opening() -> None:
    openings: dict[str, int] = {}
    for row in ROWS:
        first = row["output"].split()[0]
        openings[first] = openings.get(first, 0) + 1
    assert sum(count for count in openings.values() if count >= 8) >= len(ROWS) // 3


@pytest.mark.parametrize("name", ["demo.yaml", "minillm.yaml"])
def test_specs_are_valid(name: str) -> None:
    from minillm.specfile import local_files, read_spec, with_files

    spec = read_spec(EXAMPLES / name)
    files = local_files(spec, EXAMPLES)
    assert files == {"dataset.file": EXAMPLES / "instructions.jsonl"}
    JobSpec.model_validate_json(json.dumps(with_files(spec, {"dataset.file": "file_x"})))
