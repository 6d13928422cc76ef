"""The contract of uploaded rows: what a dataset, a corpus and a calibration file hold, and the one reader of each.

The API takes an upload in where these read it to its end, and the trainer reads it again with the same: what is
accepted is what is trained on. Every fault names its line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

MAX_LINE_BYTES = 16 << 20
MAX_LABELS = 64
"""Different answers of a calibration file: all of them are scored for each of its rows."""

DATASET_SHAPES = (
    'A row is {"instruction", "input" (optional), "output"}, {"prompt", "response"} (or "completion" for '
    '"response"), or {"messages": [{"role", "content"}, ...]} that ends with an assistant message.'
)
CORPUS_SHAPES = 'A corpus is plain UTF-8 text, or JSONL rows {"text"}.'
CALIBRATION_SHAPES = 'A calibration row is {"instruction", "answer"}, both text.'

ROLES = ("system", "user", "assistant", "tool")

Purpose = Literal["dataset", "corpus", "calibration"]
_Object = Mapping[str, Any]


class BadRows(Exception):
    """The file cannot be used. `line` counts from 1; None where the fault is of the whole file."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason if line is None else f"line {line}: {reason}")
        self.line = line


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A row of a dataset. ``messages`` is the prompt as a conversation, for every kind, without the response."""

    kind: Literal["instruction", "prompt", "messages"]
    messages: tuple[Message, ...]
    response: str
    line: int
    """Number of the line in the file, from 1."""
    instruction: str = ""
    input: str = ""


@dataclass(frozen=True)
class Question:
    """A row of a calibration file."""

    instruction: str
    answer: str
    """Without blanks around it."""
    line: int


def dataset_rows(stream: BinaryIO) -> Iterator[Example]:
    """The rows of JSONL in any of the accepted shapes, one to a line. Other fields of a row are ignored.

    A row has the first of the shapes whose fields it has all of, in the order of :data:`DATASET_SHAPES`, messages
    ahead of both. Raises BadRows at the first line at fault, and where there is no row.
    """
    for line, row in _objects(stream):
        try:
            example = _example(row, line)
        except ValueError as error:
            raise BadRows(str(error), line) from None
        yield example


def corpus_documents(stream: BinaryIO) -> Iterator[str]:
    """The documents of a corpus: the `text` of each row of JSONL, or the whole of plain text as one. Raises BadRows."""
    if not _begins_with_object(stream):
        _check_text(stream)
        stream.seek(0)
        yield stream.read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        return
    yield from _texts(stream)


def calibration_rows(stream: BinaryIO) -> Iterator[Question]:
    """The rows of JSONL. Raises BadRows, also at the end of a file without 2 to :data:`MAX_LABELS` answers."""
    answers: set[str] = set()
    rows = 0
    for line, row in _objects(stream):
        if "instruction" not in row or "answer" not in row:
            raise BadRows(f'the row needs "instruction" and "answer". {CALIBRATION_SHAPES}', line)
        try:
            question = Question(_text(row, "instruction"), _text(row, "answer").strip(), line)
        except ValueError as error:
            raise BadRows(str(error), line) from None
        rows += 1
        answers.add(question.answer)
        if len(answers) > MAX_LABELS:
            raise BadRows(f"more than {MAX_LABELS} different answers: calibration is of short labels", line)
        yield question
    if len(answers) < 2:
        raise BadRows(f"the answers of all {rows} rows are the same: calibration needs two different ones")


def check_file(stream: BinaryIO, *, purpose: str) -> int:
    """Rows (of plain text, lines that are not blank) of a file used as `purpose`. Raises BadRows."""
    if purpose == "corpus":
        return sum(1 for _ in _texts(stream)) if _begins_with_object(stream) else _check_text(stream)
    if purpose == "calibration":
        return sum(1 for _ in calibration_rows(stream))
    return sum(1 for _ in dataset_rows(stream))


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


def _objects(stream: BinaryIO) -> Iterator[tuple[int, _Object]]:
    """(line, object) of each line that is not blank. Raises BadRows, also where there is none."""
    empty = True
    for number, text in _lines(stream):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadRows(f"not JSON: {error.msg} at character {error.pos + 1}", number) from None
        except RecursionError:
            raise BadRows("not JSON that can be read: nested too deeply", number) from None
        except ValueError as error:  # such as a number of ten thousand digits
            raise BadRows(f"not JSON that can be read: {error}", number) from None
        if not isinstance(row, dict):
            raise BadRows("not a JSON object: JSONL has one object a line", number)
        empty = False
        yield number, row
    if empty:
        raise BadRows("the file has no rows")


def _example(row: _Object, line: int) -> Example:
    """Raises ValueError unless the row has one of the accepted shapes."""
    if "messages" in row:
        *prompt, last = _messages(row["messages"])
        return Example("messages", tuple(prompt), last.content, line)
    if "instruction" in row and "output" in row:
        instruction = _text(row, "instruction")
        given = _text(row, "input", blank=True) if row.get("input") is not None else ""
        asked = f"{instruction}\n\n{given}" if given.strip() else instruction
        response = _text(row, "output", blank=True)
        return Example("instruction", (Message("user", asked),), response, line, instruction, given)
    if "prompt" in row and ("response" in row or "completion" in row):
        prompted = _text(row, "prompt")
        response = _text(row, "response" if "response" in row else "completion", blank=True)
        return Example("prompt", (Message("user", prompted),), response, line, prompted)
    found = ", ".join(f'"{key[:40]}"' for key in list(row)[:8]) or "no keys"
    raise ValueError(f"the row lacks the needed keys (it has {found}). {DATASET_SHAPES}")


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError('"messages" must be a list of at least two: a prompt and the assistant\'s answer')
    messages = []
    for number, item in enumerate(value):
        if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
            raise ValueError(f'messages[{number}] must be an object with "role" and "content"')
        if item["role"] not in ROLES:
            raise ValueError(f"messages[{number}] has a role that is none of {', '.join(ROLES)}")
        try:
            messages.append(Message(item["role"], _text(item, "content", blank=number == len(value) - 1)))
        except ValueError as error:
            raise ValueError(f"messages[{number}]: {error}") from None
    if messages[-1].role != "assistant":
        raise ValueError("the last message must be the assistant's: it is the response to learn from")
    if not any(message.role == "user" for message in messages):
        raise ValueError("there is no message of the user")
    return messages


def _text(row: _Object, key: str, *, blank: bool = False) -> str:
    """The text `row[key]`; raises ValueError unless it is one that a tokenizer can take."""
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
    return value


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


def _texts(stream: BinaryIO) -> Iterator[str]:
    for line, row in _objects(stream):
        if "text" not in row:
            raise BadRows(f'the row has no "text". {CORPUS_SHAPES}', line)
        try:
            text = _text(row, "text", blank=True)
        except ValueError as error:
            raise BadRows(str(error), line) from None
        yield text


def _check_text(stream: BinaryIO) -> int:
    """Lines of plain text that are not blank. Raises BadRows where it is not UTF-8 or empty."""
    lines = sum(1 for _ in _lines(stream))
    if lines == 0:
        raise BadRows("the file has no text")
    return lines
