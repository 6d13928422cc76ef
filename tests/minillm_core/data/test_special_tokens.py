"""Texts of special tokens in rows: one token or text by a setting, never by accident, and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from minillm_core.data.dataset import Dataset, load_dataset
from minillm_core.spec import DatasetSpec, TrainingSpec
from tests.minillm_core.tiny_runs import of_type, run_here, write_run
from tests.tiny_models import END, START, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END_ID, START_ID = TOKENIZER.convert_tokens_to_ids([END, START])


def load(folder: Path, rows: list[dict[str, Any]], **changed: Any) -> Dataset:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = {"max_prompt_tokens": 200, "max_new_tokens": 64, "dev_fraction": 0.5, "max_dev_rows": 9, "seed": 0}
    given = {"template": "chat", "tokenizer": TOKENIZER, **settings, **changed}
    return load_dataset(path, **given)


def rows_of(dataset: Dataset) -> list[Any]:
    return sorted([*dataset.train, *dataset.dev], key=lambda row: row.prompt_text)


def row(prompt: str, response: str) -> dict[str, Any]:
    return {"prompt": prompt, "response": response}


class TestAsTokens:
    @pytest.mark.parametrize("ending", [END, f"{END}\n", f"{END}{END}"])
    def test_an_end_token_at_the_end_of_a_response_is_its_end(self, tmp_path: Path, ending: str) -> None:
        with_end = load(tmp_path, [row("a", f"The river.{ending}"), row("b", "The baker.")])
        without = load(tmp_path, [row("a", "The river."), row("b", "The baker.")])
        assert rows_of(with_end) == rows_of(without)
        assert with_end.counts.special_rows == 1

    def test_is_how_prompts_are_read(self, tmp_path: Path) -> None:
        first, _ = rows_of(load(tmp_path, [row(f"a {END} b", "x"), row("b", "x")]))
        assert first.prompt_ids.count(END_ID) == 2


class TestAsText:
    @pytest.mark.parametrize("template", ["chat", "plain", "alpaca"])
    def test_no_special_token_is_read_in_a_row(self, tmp_path: Path, template: Any) -> None:
        plain = rows_of(load(tmp_path, [row("a or b", "c or d"), row("e", "f")], template=template))[0]
        data = [row(f"a {END} b {START}", f"c {START} d {END}"), row("e", "f")]
        special = rows_of(load(tmp_path, data, template=template, special_tokens="text"))[0]
        for id_ in (END_ID, START_ID):
            assert special.prompt_ids.count(id_) == plain.prompt_ids.count(id_)
        assert special.response_ids.count(END_ID) == 1 and special.response_ids[-1] == END_ID
        assert special.response_text == f"c {START} d {END}"
        assert TOKENIZER.decode(special.response_ids[:-1]) == special.response_text
        assert TOKENIZER.decode(special.prompt_ids) == special.prompt_text
        assert f"a {END} b {START}" in special.prompt_text

    @pytest.mark.parametrize("template", ["chat", "plain", "alpaca"])
    def test_rows_without_are_the_same(self, tmp_path: Path, template: Any) -> None:
        data = [row("a <b> c", "d </s e"), row("f", "g")]
        tokens, text = (load(tmp_path, data, template=template, special_tokens=kind) for kind in ("tokens", "text"))
        assert rows_of(tokens) == rows_of(text)

    def test_ends_and_starts_of_the_template_stay(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer(starts=True)
        data = [row(f"a {START}", "x"), row("b", "x")]
        first, _ = rows_of(load(tmp_path, data, tokenizer=tokenizer, template="plain", special_tokens="text"))
        assert first.prompt_ids.count(START_ID) == 1 and first.prompt_ids[0] == START_ID

    def test_tokens_that_are_not_special_are_read_as_ever(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["<think>"])
        tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<end>", rstrip=True, special=True)]})
        think, end = tokenizer.convert_tokens_to_ids(["<think>", "<end>"])
        data = [row("a", "<think> <end> b"), row("b", "x")]
        first, _ = rows_of(load(tmp_path, data, tokenizer=tokenizer, special_tokens="text"))
        assert think in first.response_ids and end not in first.response_ids


def test_what_is_cut_left_out_and_repeated_is_counted(tmp_path: Path) -> None:
    data = [row("a", "x " * 40), row("b", "x"), row("b", "x"), row("c " * 90, "x"), row("d", f"x{END}")]
    counts = load(tmp_path, data, max_prompt_tokens=60, max_new_tokens=8).counts
    assert (counts.rows, counts.train + counts.dev, counts.long_prompts) == (5, 4, 1)
    assert (counts.cut_responses, counts.duplicates, counts.special_rows) == (1, 1, 1)
    assert counts.special_tokens == {END: 1} and counts.longest_response > 40
    told = counts.warnings(DatasetSpec(file="path:x"), TrainingSpec(max_new_tokens=8, max_prompt_tokens=60))
    assert told.keys() == {"responses_cut", "prompts_left_out", "duplicate_rows", "special_tokens_in_text"}
    assert "raise training.max_new_tokens" in told["responses_cut"]


def test_a_run_tells_it_in_events_and_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path, method={"type": "sft"}, training={"max_steps": 1, "max_new_tokens": 8})
    data = [row(f"question {index}", "The river follows the baker before sunrise." + END) for index in range(20)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, data)))
    found = run_here(folder)
    codes = {event["code"]: event for event in of_type(found, "message")}
    assert {"responses_cut", "special_tokens_in_text"} <= codes.keys()
    assert codes["dataset"]["data"]["cut_responses"] == 20
    assert of_type(found, "student")[0]["report"]["dataset"]["special_tokens"] == {END: 20}
