"""The contract of uploaded rows: what is accepted, what it reads as, and what is said of the line at fault."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from minillm_core.spec import rows
from minillm_core.spec.rows import BadRows, check_file, dataset_rows

GOOD = b'{"prompt": "a", "response": "b"}\n'
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.mark.parametrize(
    ("row", "kind", "response"),
    [
        ({"instruction": "a", "output": "b"}, "instruction", "b"),
        ({"instruction": "a", "input": "", "output": ""}, "instruction", ""),
        ({"instruction": "a", "input": None, "output": "b", "category": 7}, "instruction", "b"),
        ({"prompt": "a", "response": "b"}, "prompt", "b"),
        ({"prompt": "a", "completion": "é🙂"}, "prompt", "é🙂"),
        ({"prompt": "a", "completion": "c", "response": "b"}, "prompt", "b"),
        ({"messages": TALK}, "messages", ""),
        # Fields of more than one shape: the first whose fields are all there.
        ({"instruction": "a", "prompt": "b", "response": "c"}, "prompt", "c"),
        ({"instruction": "a", "output": "b", "prompt": "c"}, "instruction", "b"),
        ({"instruction": "a", "output": "b", "prompt": "c", "response": "d"}, "instruction", "b"),
        ({"messages": TALK, "prompt": "c", "response": "d"}, "messages", ""),
    ],
)
def test_accepted(row: dict[str, Any], kind: str, response: str) -> None:
    content = b"\xef\xbb\xbf" + jsonl(row) + b"\r\n\n" + jsonl(row).rstrip()
    assert check_file(io.BytesIO(content), purpose="dataset") == 2
    first, second = dataset_rows(io.BytesIO(content))
    assert (first.kind, first.response, first.line, second.line) == (kind, response, 1, 4)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (GOOD + b'{"prompt": \n', 2, "not JSON"),
        (b"name,age\n", 1, "not JSON"),
        (GOOD + b"\n[1, 2]\n", 3, "not a JSON object"),
        (GOOD + b'{"prompt": "\xff"}\n', 2, "not UTF-8"),
        (b"", None, "no rows"),
        (b"\n  \n", None, "no rows"),
        (GOOD + jsonl({"prompt": "a"}), 2, "needed keys"),
        (jsonl({"question": "a", "answer": "b"}), 1, '{"instruction", "input" (optional), "output"}'),
        (jsonl({"instruction": "a"}), 1, "needed keys"),
        (jsonl({"instruction": "a", "prompt": "b"}), 1, "needed keys"),
        (jsonl({"prompt": 5, "response": "b"}), 1, '"prompt" must be text, not int'),
        (jsonl({"prompt": " ", "response": "b"}), 1, '"prompt" is empty'),
        (jsonl({"prompt": "a", "response": None}), 1, '"response" must be text, not NoneType'),
        (jsonl({"instruction": "a", "input": 1, "output": "b"}), 1, '"input" must be text'),
        (jsonl({"messages": []}), 1, "at least two"),
        (jsonl({"messages": [TALK[0], TALK[0]]}), 1, "assistant"),
        (jsonl({"messages": [{"role": "system", "content": "a"}, TALK[1]]}), 1, "no message of the user"),
        (jsonl({"messages": [{"role": "alien", "content": "a"}, TALK[1]]}), 1, "role"),
        (jsonl({"messages": [{"role": "user"}, TALK[1]]}), 1, "messages[0]"),
        (jsonl({"messages": ["a", "b"]}), 1, "messages[0]"),
        (b'{"prompt": "\\ud800", "response": "b"}\n', 1, "surrogate"),
        (b"[" * 100_000 + b"\n", 1, "not JSON"),
        (b'{"prompt": "a", "response": "b", "n": ' + b"1" * 5000 + b"}\n", 1, "not JSON"),
    ],
)
def test_refused_with_the_line(content: bytes, line: int | None, words: str) -> None:
    with pytest.raises(BadRows) as caught:
        check_file(io.BytesIO(content), purpose="dataset")
    assert words in str(caught.value)
    assert caught.value.line == line


def test_calibration() -> None:
    def rows_of(*answers: str) -> bytes:
        return jsonl(*({"instruction": "a", "answer": answer} for answer in answers))

    assert check_file(io.BytesIO(rows_of("yes", "no", " yes")), purpose="calibration") == 3
    with pytest.raises(BadRows, match="answers of all 2 rows are the same"):
        check_file(io.BytesIO(rows_of("yes", " yes ")), purpose="calibration")
    with pytest.raises(BadRows, match="line 65: more than 64 different answers"):
        check_file(io.BytesIO(rows_of(*map(str, range(70)))), purpose="calibration")
    with pytest.raises(BadRows, match='line 1: "answer" is empty'):
        check_file(io.BytesIO(rows_of(" ", "no")), purpose="calibration")


@pytest.mark.parametrize(
    ("content", "documents", "counted"),
    [
        (b'\xef\xbb\xbf{"text": "one"}\n\n{"text": ""}\n', ["one", ""], 2),
        (b"\xef\xbb\xbfone\r\n\r\ntwo\rthree", ["one\n\ntwo\nthree"], 2),
        (b"[1, 2]\n", ["[1, 2]\n"], 1),
        (b"[" * 100_000, ["[" * 100_000], 1),
    ],
)
def test_corpus(content: bytes, documents: list[str], counted: int) -> None:
    assert list(rows.corpus_documents(io.BytesIO(content))) == documents
    assert check_file(io.BytesIO(content), purpose="corpus") == counted


@pytest.mark.parametrize("content", [b"", b" \n", b"caf\xe9", b'{"text": "a"}\n{"words": "b"}\n', b'{"text": 1}'])
def test_no_corpus(content: bytes) -> None:
    with pytest.raises(BadRows) as counted:
        check_file(io.BytesIO(content), purpose="corpus")
    with pytest.raises(BadRows) as read:
        list(rows.corpus_documents(io.BytesIO(content)))
    assert str(counted.value) == str(read.value)
