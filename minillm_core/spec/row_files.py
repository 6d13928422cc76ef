"""From the bytes of a file to its rows as objects: JSONL, one JSON array, or CSV, told apart by how the file begins.

Whatever the size of a file, one row of it is in memory at a time.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal

MAX_LINE_BYTES = 16 << 20
"""Bytes of a line, and characters of a row or field of what has rows that are not lines."""

Object = Mapping[str, Any]
Unit = Literal["line", "row"]
Columns = tuple[frozenset[str], ...]
"""What a row can be made of: it has all columns of one of the sets at least."""

_PIECE_BYTES = 1 << 16
_DELIMITERS = (",", "\t", ";")
_BEGINS_AS_ROWS = re.compile(r'(\[\s*)?\{\s*("(?:[^"\\]|\\.)*"\s*:|\}\s*$)', re.MULTILINE)
_BLANKS = re.compile(r"[ \t\r\n]*")
_UNPACK = "unpack it first: files are kept and read as they are"
_NO_TEXT = (
    (
        b"PAR1\x15",
        "this is Parquet, which is not read: write it as JSONL, by pandas' to_json(orient='records', lines=True)",
    ),
    (b"ARROW1\x00\x00", "this is Arrow, which is not read: write it as JSONL, such as by the to_json of datasets"),
    (b"PK\x03\x04", f"this is a ZIP archive or a spreadsheet: write the sheet as CSV, or {_UNPACK}"),
    (b"\x1f\x8b", f"this is compressed with gzip: {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"this is compressed with zstd: {_UNPACK}"),
    (b"BZh91AY&SY", f"this is compressed with bzip2: {_UNPACK}"),
    (b"\xfd7zXZ\x00", f"this is compressed with xz: {_UNPACK}"),
    (b"\xff\xfe", "this is UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "this is UTF-16: save it as UTF-8"),
)
"""How files begin that are no text, and what is said of them."""


class BadRows(Exception):
    """The file cannot be used. `line` counts from 1, rows where `unit` says so; None where the whole file is wrong."""

    def __init__(self, reason: str, line: int | None = None, unit: Unit = "line") -> None:
        super().__init__(reason if line is None else f"{unit} {line}: {reason}")
        self.line = line


def objects(stream: BinaryIO, columns: Columns) -> Iterator[tuple[int, Unit, Object]]:
    """(number, what it counts, object) of each row. Raises BadRows, also where there is none.

    A file that begins with a bracket is one JSON array; one whose first line names `columns` is CSV, with commas,
    semicolons or tabs; any other is JSONL.
    """
    beginning = _beginning(stream)
    delimiter = _delimiter(beginning, columns)
    number: int
    row: Object
    unit: Unit = "line"
    if beginning.startswith("["):
        unit = "row"
        found = _array(stream)
    else:
        found = _lines_of_json(stream) if delimiter is None else _csv(stream, delimiter)
    empty = True
    for number, row in found:
        empty = False
        yield number, unit, row
    if empty:
        raise BadRows("the file has no rows")


def has_rows(stream: BinaryIO, columns: Columns) -> bool:
    """Whether a file is of rows, and not plain text. The stream is where it was afterwards.

    What begins as JSON objects do is of rows, also where it is broken: it is refused then, and never taken for text.
    """
    beginning = _beginning(stream)
    return bool(_BEGINS_AS_ROWS.match(beginning)) or _delimiter(beginning, columns) is not None


def lines(stream: BinaryIO, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """(number, text) of each line, those that are blank only where asked for.

    Raises BadRows where one is over-long or not UTF-8.
    """
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1 and (reason := next((told for start, told in _NO_TEXT if raw.startswith(start)), None)):
            raise BadRows(reason)
        if len(raw) > MAX_LINE_BYTES:
            raise BadRows(f"longer than {MAX_LINE_BYTES >> 20} MiB", number)
        try:
            # A byte order mark is what some editors put before the first line.
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise BadRows(f"not UTF-8 at byte {error.start + 1} of the line", number) from None
        if blank or text.strip():
            yield number, text


def _beginning(stream: BinaryIO) -> str:
    """The first characters from the first that is no blank on. The stream is where it was afterwards."""
    here = stream.tell()
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    text = ""
    try:
        while not text and (raw := stream.read(_PIECE_BYTES)):
            text = decoder.decode(raw).lstrip()
        return text
    finally:
        stream.seek(here)


def _lines_of_json(stream: BinaryIO) -> Iterator[tuple[int, Object]]:
    for number, text in lines(stream):
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
        yield number, row


class _Text:
    """The text of a stream and a place in it; what lies before the place is forgotten, what follows is read as needed.

    Raises BadRows where the stream is not UTF-8.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._pieces = _pieces(stream)
        self.text = ""
        self.place = 0

    @property
    def left(self) -> int:
        return len(self.text) - self.place

    def more(self, characters: int) -> bool:
        """Reads so many at least; False where there is no more."""
        found = [self.text[self.place :]]
        self.place = 0
        length = before = len(found[0])
        while length < before + characters and (piece := next(self._pieces, "")):
            found.append(piece)
            length += len(piece)
        self.text = "".join(found)
        return length > before

    def next_character(self) -> str:
        """Goes to the next that is no blank; empty at the end."""
        while True:
            self.place = _BLANKS.match(self.text, self.place).end()  # type: ignore[union-attr]  # it may be empty
            if self.left or not self.more(_PIECE_BYTES):
                return self.text[self.place : self.place + 1]


def _pieces(stream: BinaryIO) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read = 0
    while raw := stream.read(_PIECE_BYTES):
        try:
            if text := decoder.decode(raw):
                yield text
        except UnicodeDecodeError as error:
            raise BadRows(f"not UTF-8 near byte {read + error.start + 1} of the file") from None
        read += len(raw)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise BadRows("not UTF-8: the file ends within a character") from None


def _array(stream: BinaryIO) -> Iterator[tuple[int, Object]]:
    """The objects of one JSON array, counted from 1."""
    source = _Text(stream)
    source.next_character()
    source.place += 1
    decoder = json.JSONDecoder()
    number = 0
    while (character := source.next_character()) != "]":
        number += 1
        if number > 1:
            if character != ",":
                raise BadRows("not JSON: a comma or a bracket must follow the row before", number, "row")
            source.place += 1
            character = source.next_character()
        if character != "{":
            raise BadRows("not JSON that has rows: each item of the array must be an object", number, "row")
        row, source.place = _decode(decoder, source, number)
        yield number, row
    source.place += 1
    if source.next_character():
        raise BadRows("not JSON: there is something behind the array", number, "row")


def _decode(decoder: json.JSONDecoder, source: _Text, number: int) -> tuple[Object, int]:
    while True:
        try:
            return decoder.raw_decode(source.text, source.place)
        except RecursionError:
            raise BadRows("not JSON that can be read: nested too deeply", number, "row") from None
        except ValueError as error:
            # Wrong, or not read to its end: what is read doubles, so that a long row is not tried over and over.
            if source.left > MAX_LINE_BYTES or not source.more(max(_PIECE_BYTES, source.left)):
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise BadRows(f"not JSON that can be read: {reason}", number, "row") from None


def _delimiter(beginning: str, columns: Columns) -> str | None:
    """What parts the columns of a file that begins so; None where the first line has none of the sets of `columns`."""
    first = beginning.partition("\n")[0].rstrip("\r")
    for delimiter in _DELIMITERS:
        try:
            names = next(csv.reader([first], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        if any(needed <= set(names) for needed in columns):
            return delimiter
    return None


def _csv(stream: BinaryIO, delimiter: str) -> Iterator[tuple[int, Object]]:
    """RFC 4180, each row by the number of the line that it begins in. A cell is text, and never null."""
    # One limit for the process: no reader of this program wants the smaller default.
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader((text for _, text in lines(stream, blank=True)), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadRows(f"not CSV: {error}", number) from None
        if cells is None:
            return
        if not cells or cells == [""] or (not names and not any(cell.strip() for cell in cells)):
            continue
        if not names:
            names = cells
            if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
                raise BadRows(f'two columns are called "{twice[:40]}"', number)
        elif len(cells) != len(names):
            raise BadRows(f"{len(cells)} cells where the first line names {len(names)} columns", number)
        else:
            yield number, dict(zip(names, cells, strict=True))
