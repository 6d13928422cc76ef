"""Rows are read in three shapes, and a wrong line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillm_core.data.formats import read_rows
from minillm_core.errors import UserError
from minillm_core.spec.rows import Message


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


def test_a_wrong_line_is_the_users_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", {"prompt": "a", "response": "b"}, {"prompt": "a"})
    with pytest.raises(UserError, match=r"line 2: .*needed keys") as caught:
        read_rows(path)
    assert (caught.value.code, caught.value.param) == ("dataset_invalid", "/dataset/file")


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        read_rows(write(tmp_path / "rows", "", "  "))
