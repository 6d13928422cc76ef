from __future__ import annotations

import pytest

from store.db.printable import log_tail, printable, printable_data


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07rest", "rest"),
        ("a\x00b\x08c\x7fd\x9be", "abcde"),
        ("50%\r100%\r\n", "50%\n100%\n"),
        ("lone \ud800 surrogate", "lone  surrogate"),
        ("日本語 é", "日本語 é"),
    ],
)
def test_printable(raw: str, clean: str) -> None:
    assert printable(raw) == clean


def test_inside_json() -> None:
    assert printable_data({"a\x00": ["\x1b[1mb", 1, None, {"c": "d\x07"}]}) == {"a": ["b", 1, None, {"c": "d"}]}


def test_tail_is_bounded_and_starts_at_a_line() -> None:
    raw = b"".join(b"line %d\n" % number for number in range(20_000))
    tail = log_tail(raw)
    assert len(tail.encode()) <= 65536 and tail.startswith("line ") and tail.endswith("line 19999\n")
    assert log_tail(b"short") == "short"


def test_tail_of_bytes_that_are_no_text_stays_bounded() -> None:
    assert len(log_tail(b"\xff" * 200_000).encode()) <= 65536
