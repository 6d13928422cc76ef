"""The contract of uploaded rows: what a dataset, a corpus and a calibration file hold, and the one reader of each.

The API takes an upload in where these read it to its end, and the trainer reads it again with the same: what is
accepted is what is trained on. Every fault names its line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from minillm_core.spec.conversations import Message, conversation, text_of
from minillm_core.spec.row_files import BadRows, Object, Unit, has_rows, lines, objects

__all__ = ["BadRows", "Example", "Message", "Question", "check_file"]

MAX_LABELS = 64
"""Different answers of a calibration file: all of them are scored for each of its rows."""

FILES = "JSONL, one JSON array of objects, or CSV whose first line names the columns"
DATASET_SHAPES = (
    'A row is {"instruction", "input" (optional), "output"}, {"prompt", "response"} (or "completion" for '
    '"response"; both text, or both messages), or {"messages": [{"role", "content"}, ...]} (or "conversations" of '
    '{"from", "value"}) that ends with an assistant message.'
)
CORPUS_SHAPES = 'A corpus is plain UTF-8 text, or rows {"text"}.'
CALIBRATION_SHAPES = 'A calibration row is {"instruction", "answer"}, both text.'

_DATASET_COLUMNS = tuple(map(frozenset, ({"instruction", "output"}, {"prompt", "response"}, {"prompt", "completion"})))
_CORPUS_COLUMNS = (frozenset({"text"}),)
_CALIBRATION_COLUMNS = (frozenset({"instruction", "answer"}),)

Purpose = Literal["dataset", "corpus", "calibration"]
TrainOn = Literal["last", "all"]


@dataclass(frozen=True)
class Example:
    """A row of a dataset. ``messages`` is the prompt as a conversation, for every kind, without the response."""

    kind: Literal["instruction", "prompt", "messages"]
    messages: tuple[Message, ...]
    response: str
    line: int
    """Number of the line in the file, from 1, or of the row where ``unit`` says so."""
    instruction: str = ""
    input: str = ""
    unit: Unit = "line"

    @property
    def place(self) -> str:
        """Where it is in its file, for people."""
        return f"{self.unit} {self.line}"


@dataclass(frozen=True)
class Question:
    """A row of a calibration file."""

    instruction: str
    answer: str
    """Without blanks around it."""
    line: int
    unit: Unit = "line"


def dataset_rows(stream: BinaryIO, train_on: TrainOn = "last") -> Iterator[Example]:
    """The rows in any of the accepted shapes. Other fields of a row are ignored.

    A row has the first of the shapes whose fields it has all of, messages ahead of the order of
    :data:`DATASET_SHAPES`; a field that is null is not there. Where ``train_on`` is ``all`` a conversation gives an
    example for each of its assistant's messages that is learned, in order. Raises BadRows at the first row at fault,
    and where there is no row.
    """
    for number, unit, row in objects(stream, _DATASET_COLUMNS):
        try:
            examples = _examples(row, number, unit)
        except ValueError as error:
            raise BadRows(str(error), number, unit) from None
        yield from examples[-1:] if train_on == "last" else examples


def corpus_documents(stream: BinaryIO) -> Iterator[str]:
    """The documents of a corpus: the `text` of each row, or the whole of plain text as one. Raises BadRows."""
    if not has_rows(stream, _CORPUS_COLUMNS):
        _check_text(stream)
        stream.seek(0)
        yield stream.read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        return
    yield from _texts(stream)


def calibration_rows(stream: BinaryIO) -> Iterator[Question]:
    """The rows. Raises BadRows, also at the end of a file without 2 to :data:`MAX_LABELS` answers."""
    answers: set[str] = set()
    rows = 0
    for number, unit, row in objects(stream, _CALIBRATION_COLUMNS):
        if "instruction" not in row or "answer" not in row:
            raise BadRows(f'the row needs "instruction" and "answer". {CALIBRATION_SHAPES}', number, unit)
        try:
            question = Question(text_of(row, "instruction"), text_of(row, "answer").strip(), number, unit)
        except ValueError as error:
            raise BadRows(str(error), number, unit) from None
        rows += 1
        answers.add(question.answer)
        if len(answers) > MAX_LABELS:
            raise BadRows(f"more than {MAX_LABELS} different answers: calibration is of short labels", number, unit)
        yield question
    if len(answers) < 2:
        raise BadRows(f"the answers of all {rows} rows are the same: calibration needs two different ones")


def check_file(stream: BinaryIO, *, purpose: str) -> int:
    """Rows (of plain text, lines that are not blank) of a file used as `purpose`. Raises BadRows."""
    if purpose == "corpus":
        return sum(1 for _ in _texts(stream)) if has_rows(stream, _CORPUS_COLUMNS) else _check_text(stream)
    if purpose == "calibration":
        return sum(1 for _ in calibration_rows(stream))
    return sum(1 for _ in dataset_rows(stream))


def _examples(row: Object, line: int, unit: Unit) -> list[Example]:
    """One for each message to learn, in order. Raises ValueError unless the row has one of the accepted shapes."""
    # Rows of a table with the columns of several shapes have nulls in those that they do not use.
    given = {key: value for key, value in row.items() if value is not None}
    for fields in (given, row):
        if "messages" in fields:
            return _of_conversation(*conversation(fields), line, unit)
        if "instruction" in fields and "output" in fields:
            return [_of_instruction(fields, line, unit)]
        if "prompt" in fields and ("response" in fields or "completion" in fields):
            answer = "response" if "response" in fields else "completion"
            if isinstance(fields["prompt"], list) or isinstance(fields[answer], list):
                return _of_conversation(*conversation(fields, answer), line, unit)
            prompted = text_of(fields, "prompt")
            response = text_of(fields, answer, blank=True)
            return [Example("prompt", (Message("user", prompted),), response, line, prompted, unit=unit)]
        if "conversations" in fields:
            return _of_conversation(*conversation(fields), line, unit)
    found = ", ".join(f'"{key[:40]}"' for key in list(row)[:8]) or "no keys"
    raise ValueError(f"the row lacks the needed keys (it has {found}). {DATASET_SHAPES}")


def _of_instruction(fields: Object, line: int, unit: Unit) -> Example:
    instruction = text_of(fields, "instruction")
    given = text_of(fields, "input", blank=True) if fields.get("input") is not None else ""
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    response = text_of(fields, "output", blank=True)
    return Example("instruction", (Message("user", asked),), response, line, instruction, given, unit)


def _of_conversation(messages: list[Message], learned: list[int], line: int, unit: Unit) -> list[Example]:
    return [Example("messages", tuple(messages[:place]), messages[place].content, line, unit=unit) for place in learned]


def _texts(stream: BinaryIO) -> Iterator[str]:
    for number, unit, row in objects(stream, _CORPUS_COLUMNS):
        if "text" not in row:
            raise BadRows(f'the row has no "text". {CORPUS_SHAPES}', number, unit)
        try:
            text = text_of(row, "text", blank=True)
        except ValueError as error:
            raise BadRows(str(error), number, unit) from None
        yield text


def _check_text(stream: BinaryIO) -> int:
    """Lines of plain text that are not blank. Raises BadRows where it is not UTF-8 or empty."""
    count = sum(1 for _ in lines(stream))
    if count == 0:
        raise BadRows("the file has no text")
    return count
