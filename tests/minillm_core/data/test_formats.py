"""Rows are read in three shapes, and a wrong line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillm_core.data.formats import Message, read_rows
from minillm_core.errors import UserError


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_every_shape(tmp_path: Path) -> None:
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "Four."},
    ]
    path = write(
        tmp_path / "rows",
        {"instruction": "Add.", "input": "2 2", "output": "4", "category": "ignored"},
        {"instruction": "Greet.", "input": None, "output": "Hello"},
        "",
        {"prompt": "Sky?", "completion": "Blue"},
        {"prompt": "Sky?", "response": "Grey"},
        {"messages": conversation},
    )
    add, greet, blue, grey, chat = read_rows(path)
    assert (add.instruction, add.input, add.response, add.line) == ("Add.", "2 2", "4", 1)
    assert add.messages == (Message("user", "Add.\n\n2 2"),)
    assert greet.messages == (Message("user", "Greet."),) and greet.input == ""
    assert (blue.response, blue.line) == ("Blue", 4)
    assert grey.response == "Grey"
    assert chat.messages == (Message("system", "Be brief."), Message("user", "Two and two?"))
    assert chat.response == "Four."


def test_empty_response_and_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "Say nothing.", "response": ""}\r\n')
    assert read_rows(path)[0].response == ""


GOOD = {"prompt": "a", "response": "b"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "not a JSON object but list"),
        ({"question": "x", "answer": "y"}, "shapes"),
        ({"instruction": "x"}, '"output" is missing'),
        ({"prompt": "x"}, '"response" is missing'),
        ({"prompt": 7, "response": "y"}, '"prompt" is int'),
        ({"prompt": "  ", "response": "y"}, '"prompt" is empty'),
        ({"prompt": "x", "response": None}, '"response" is NoneType'),
        ('{"prompt": "\\ud800", "response": "y"}', "surrogate"),
        ({"messages": []}, "at least two"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}, "the last message"),
        ({"messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}]}, r"messages\[0\]"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "y"}]}, r"messages\[0\]"),
        ({"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]}, "role user"),
        ("[" * 100_000, "nested"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: object, reason: str) -> None:
    path = write(tmp_path / "rows", GOOD, row, GOOD)
    with pytest.raises(UserError, match=f"line 2: .*{reason}") as caught:
        read_rows(path)
    assert (caught.value.code, caught.value.param) == ("dataset_invalid", "/dataset/file")


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"prompt": "a", "response": "b"}\n{"prompt": "\xff", "response": "b"}\n')
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        read_rows(path)


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        read_rows(write(tmp_path / "rows", "", "  "))
