"""The dataset's rows, in the three shapes that are accepted.

One JSON object a line: ``{"instruction", "input"?, "output"}``, ``{"prompt", "response"}`` (or
``"completion"``), or ``{"messages": [{"role", "content"}, ...]}`` whose last message is the
assistant's. Other fields of a row are ignored. Every error names its line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minillm_core.errors import UserError

Kind = Literal["instruction", "prompt", "messages"]
ROLES = ("system", "user", "assistant", "tool")
_SHAPES = '{"instruction", "input", "output"}, {"prompt", "response"} or {"messages": [...]}'


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One row. ``messages`` is the prompt as a conversation, for every kind, without the response."""

    kind: Kind
    messages: tuple[Message, ...]
    response: str
    line: int
    """Number of the line in the file, from 1."""
    instruction: str = ""
    input: str = ""


def read_rows(path: Path, param: str = "/dataset/file") -> list[Example]:
    """All rows of a JSONL file; blank lines are skipped.

    Raises UserError ``dataset_invalid`` at ``param`` when the file has no rows or a line is not
    UTF-8, not a JSON object, or lacks what its shape needs.
    """
    rows = [_example(line, row, param) for line, row in json_lines(path, param)]
    if not rows:
        raise UserError("dataset_invalid", "the dataset has no rows", param=param)
    return rows


def json_lines(path: Path, param: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank. Raises UserError ``dataset_invalid``."""
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            try:
                # A byte order mark is what some editors put before the first line.
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not text:
                    continue
                row = json.loads(text)
            except UnicodeDecodeError as error:
                raise _invalid(number, f"not UTF-8 text ({error.reason})", param) from error
            except json.JSONDecodeError as error:
                raise _invalid(number, f"not JSON: {error.msg} at column {error.colno}", param) from error
            except RecursionError as error:
                raise _invalid(number, "nested too deeply", param) from error
            if not isinstance(row, dict):
                raise _invalid(number, f"not a JSON object but {type(row).__name__}", param)
            yield number, row


def text_field(row: dict[str, Any], name: str, line: int, param: str, *, blank: bool = False) -> str:
    """The string ``row[name]``; refuses another type, text that is no Unicode and, unless ``blank``, only spaces."""
    value = row.get(name)
    if not isinstance(value, str):
        found = "missing" if name not in row else f"{type(value).__name__}, not a string"
        raise _invalid(line, f'"{name}" is {found}', param)
    if not blank and not value.strip():
        raise _invalid(line, f'"{name}" is empty', param)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _invalid(line, f'"{name}" has half of a surrogate pair, which is no character', param) from error
    return value


def _example(line: int, row: dict[str, Any], param: str) -> Example:
    if "messages" in row:
        return _from_messages(line, row["messages"], param)
    if "instruction" in row:
        instruction = text_field(row, "instruction", line, param)
        given = text_field(row, "input", line, param, blank=True) if row.get("input") is not None else ""
        response = text_field(row, "output", line, param, blank=True)
        asked = f"{instruction}\n\n{given}" if given.strip() else instruction
        return Example("instruction", (Message("user", asked),), response, line, instruction, given)
    if "prompt" in row:
        prompt = text_field(row, "prompt", line, param)
        name = "completion" if "response" not in row and "completion" in row else "response"
        response = text_field(row, name, line, param, blank=True)
        return Example("prompt", (Message("user", prompt),), response, line, prompt)
    raise _invalid(line, f"a row has one of the shapes {_SHAPES}", param)


def _from_messages(line: int, value: Any, param: str) -> Example:
    if not isinstance(value, list) or len(value) < 2:
        raise _invalid(line, '"messages" is a list of at least two: a prompt and the assistant\'s answer', param)
    messages = []
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise _invalid(line, f"messages[{index}] is not an object", param)
        if item.get("role") not in ROLES:
            raise _invalid(line, f'messages[{index}] needs a "role" among {", ".join(ROLES)}', param)
        try:
            content = text_field(item, "content", line, param, blank=index == len(value) - 1)
        except UserError as error:
            raise UserError(error.code, f"{error.message} in messages[{index}]", param=param) from None
        messages.append(Message(item["role"], content))
    *prompt, last = messages
    if last.role != "assistant":
        raise _invalid(line, f'the last message is the one to learn: its role is "assistant", not "{last.role}"', param)
    if all(message.role != "user" for message in prompt):
        raise _invalid(line, "no message has the role user", param)
    return Example("messages", tuple(prompt), last.content, line)


def _invalid(line: int, reason: str, param: str) -> UserError:
    return UserError("dataset_invalid", f"line {line}: {reason}", param=param)
