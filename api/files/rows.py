"""What the lines of an uploaded file must be, by the file's purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

MAX_LINE_BYTES = 16 << 20

DATASET_SHAPES = (
    'A row is {"instruction", "input" (optional), "output"}, {"prompt", "response"} (or "completion" for '
    '"response"), or {"messages": [{"role", "content"}, ...]} that ends with an assistant message.'
)
CORPUS_SHAPES = 'A corpus is plain UTF-8 text, or JSONL rows {"text"}.'
CALIBRATION_SHAPES = 'A calibration row is {"instruction", "answer"}, both text.'

ROLES = ("system", "user", "assistant", "tool")


class BadRows(Exception):
    """The file cannot be used. `line` counts from 1; None where the fault is of the whole file."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason if line is None else f"line {line}: {reason}")
        self.line = line


def _text(row: Mapping[str, Any], key: str, *, blank: bool) -> None:
    """Raise ValueError unless `row[key]` is text that a tokenizer can take."""
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f'"{key}" must be text, not {type(value).__name__}')
    if not blank and not value.strip():
        raise ValueError(f'"{key}" is empty')
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f'"{key}" has half of a surrogate pair, which is no character') from None


def _messages(row: Mapping[str, Any]) -> None:
    messages = row["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError('"messages" must be a list of at least two: a prompt and the assistant\'s answer')
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f'messages[{number}] must be an object with "role" and "content"')
        if message["role"] not in ROLES:
            raise ValueError(f"messages[{number}] has a role that is none of {', '.join(ROLES)}")
        try:
            _text(message, "content", blank=number == len(messages) - 1)
        except ValueError as error:
            raise ValueError(f"messages[{number}]: {error}") from None
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message must be the assistant's: it is the response to learn from")
    if not any(message["role"] == "user" for message in messages):
        raise ValueError("there is no message of the user")


def dataset_row(row: Mapping[str, Any]) -> None:
    """Raise ValueError unless the row has the keys of one of the accepted shapes."""
    if "messages" in row:
        _messages(row)
    elif "instruction" in row and "output" in row:
        _text(row, "instruction", blank=False)
        _text(row, "output", blank=True)
        if row.get("input") is not None:
            _text(row, "input", blank=True)
    elif "prompt" in row and ("response" in row or "completion" in row):
        _text(row, "prompt", blank=False)
        _text(row, "response" if "response" in row else "completion", blank=True)
    else:
        found = ", ".join(f'"{key}"' for key in list(row)[:8]) or "no keys"
        raise ValueError(f"the row lacks the needed keys (it has {found}). {DATASET_SHAPES}")


def corpus_row(row: Mapping[str, Any]) -> None:
    if "text" not in row:
        raise ValueError(f'the row has no "text". {CORPUS_SHAPES}')
    _text(row, "text", blank=True)


def calibration_row(row: Mapping[str, Any]) -> None:
    if "instruction" not in row or "answer" not in row:
        raise ValueError(f'the row needs "instruction" and "answer". {CALIBRATION_SHAPES}')
    _text(row, "instruction", blank=False)
    _text(row, "answer", blank=False)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not blank. Raises BadRows where one is over-long or not UTF-8."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise BadRows(f"longer than {MAX_LINE_BYTES >> 20} MiB", number)
        try:
            # A byte order mark is what some editors put before the first line.
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise BadRows(f"not UTF-8 at byte {error.start + 1} of the line", number) from None
        if text.strip():
            yield number, text


def jsonl_rows(stream: BinaryIO, check: Callable[[Mapping[str, Any]], None]) -> int:
    """Check every line and count the rows. Raises BadRows at the first line at fault, or when there is none."""
    rows = 0
    for number, text in _lines(stream):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadRows(f"not JSON: {error.msg} at character {error.pos + 1}", number) from None
        except (ValueError, RecursionError) as error:
            raise BadRows(f"not JSON that can be read: {error}", number) from None
        if not isinstance(row, dict):
            raise BadRows("not a JSON object: JSONL has one object a line", number)
        try:
            check(row)
        except ValueError as error:
            raise BadRows(str(error), number) from None
        rows += 1
    if rows == 0:
        raise BadRows("the file has no rows")
    return rows


def text_lines(stream: BinaryIO) -> int:
    """Lines of plain text that are not blank. Raises BadRows where it is not UTF-8 or empty."""
    lines = sum(1 for _ in _lines(stream))
    if lines == 0:
        raise BadRows("the file has no text")
    return lines


def _begins_with_object(stream: BinaryIO) -> bool:
    """Whether the first line that is not blank is a JSON object; the stream is where it was afterwards."""
    here = stream.tell()
    try:
        first = next(_lines(stream), (0, ""))[1]
        return isinstance(json.loads(first), dict)
    except (BadRows, ValueError, RecursionError):
        return False
    finally:
        stream.seek(here)


def check_file(stream: BinaryIO, *, purpose: str) -> int:
    """Rows (or lines of text) of a file used as `purpose`: dataset, corpus or calibration. Raises BadRows."""
    if purpose == "corpus":
        return jsonl_rows(stream, corpus_row) if _begins_with_object(stream) else text_lines(stream)
    return jsonl_rows(stream, calibration_row if purpose == "calibration" else dataset_row)
