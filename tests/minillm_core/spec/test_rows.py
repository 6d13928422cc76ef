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
        # Other names of the same, as Vicuna, OpenAI and TRL write them.
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "messages", "b"),
        ({"conversations": [{"role": "user", "content": "a"}, {"role": "model", "content": "b"}]}, "messages", "b"),
        ({"messages": [{"role": "developer", "content": "s"}, *TALK]}, "messages", ""),
        (
            {"messages": [{**message, "tool_calls": None, "name": None} for message in TALK], "tools": []},
            "messages",
            "",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, TALK[1]]}, "messages", ""),
        ({"prompt": [TALK[0]], "completion": [{"role": "assistant", "content": "b"}]}, "messages", "b"),
        ({"prompt": [TALK[0]], "response": "b"}, "messages", "b"),
        # A table with the columns of every shape, null where a row has another one.
        (
            {"messages": None, "instruction": None, "output": None, "prompt": "a", "completion": None, "response": "b"},
            "prompt",
            "b",
        ),
        ({"messages": None, "instruction": "a", "output": "b", "prompt": None}, "instruction", "b"),
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
        (
            jsonl({"messages": [TALK[0], {**TALK[1], "tool_calls": [{"function": {"name": "f"}}]}]}),
            1,
            "messages[1] has tool_calls",
        ),
        (
            jsonl({"messages": [TALK[0], {"role": "assistant", "content": None, "function_call": {"name": "f"}}]}),
            1,
            "messages[1] has function_call",
        ),
        (
            jsonl({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}]}),
            1,
            "conversations[1] is a function_call",
        ),
        (jsonl({"messages": TALK, "tools": [{"type": "function"}]}), 1, '"tools"'),
        (
            jsonl({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, TALK[1]]}),
            1,
            "messages[0]: part 0 is 'image_url'",
        ),
        (jsonl({"messages": [TALK[0], {**TALK[1], "weight": 0.5}]}), 1, '"weight" must be 0 or 1'),
        (jsonl({"messages": [TALK[0], {**TALK[1], "weight": 0}]}), 1, "no message of the assistant to learn"),
        (
            jsonl({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": 1}]}),
            1,
            'conversations[1]: "value" must be text',
        ),
        (jsonl({"conversations": "a"}), 1, "must be a list"),
        (jsonl({"prompt": [TALK[0]], "completion": []}), 1, '"completion" has no messages'),
        (jsonl({"prompt": [TALK[0]], "completion": [TALK[0]]}), 1, "the last message must be"),
        # JSON arrays and CSV.
        (b"[]", None, "no rows"),
        (b'[{"prompt": "a", "response": "b"}, {"prompt": "a"}]', 2, "row 2: the row lacks"),
        (b'[{"prompt": "a", "response": "b"}\n', 2, "row 2: not JSON"),
        (b'[{"prompt": "a", "response": "b"}] 1', 1, "behind the array"),
        (b'[{"prompt": "a", "response": "b"} {}]', 2, "comma"),
        (b'[{"prompt": "a", "response": "b"}, {"prompt": "a\n', 2, "row 2: not JSON"),
        (b'[{"prompt": "\xff"}]', None, "not UTF-8"),
        (b'["a", "b"]', 1, "must be an object"),
        (b"prompt,response\n", None, "no rows"),
        (b"prompt,response\na,b\na\n", 3, "1 cells where the first line names 2 columns"),
        (b'prompt,response\n"a\n\nb",c\n" ",d\n', 5, '"prompt" is empty'),
        (b'prompt,response\na,"b\n', 2, "not CSV"),
        (b"prompt,prompt,response\na,b,c\n", 1, 'two columns are called "prompt"'),
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


@pytest.mark.parametrize("purpose", ["dataset", "corpus", "calibration"])
@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"PAR1\x15\x04", "Parquet, which is not read: write it as JSONL"),
        (b"PK\x03\x04\x14", "write the sheet as CSV"),
        (b"\x1f\x8b\x08", "gzip: unpack it"),
        ("\ufeff{}".encode("utf-16-le"), "UTF-16: save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_told_what_it_is(start: bytes, words: str, purpose: str) -> None:
    with pytest.raises(BadRows, match=words):
        check_file(io.BytesIO(start + b"\x00rest\n"), purpose=purpose)


@pytest.mark.parametrize("indent", [None, 2])
def test_one_json_array(indent: int | None) -> None:
    # More than is read at a time, characters of several bytes across its pieces, one row longer than a piece.
    pairs = [{"prompt": f"é{number}", "response": "東" * (100_000 if number == 7 else 9)} for number in range(3000)]
    content = b"\xef\xbb\xbf \n" + json.dumps(pairs, indent=indent, ensure_ascii=False).encode() + b"\n\n"
    assert check_file(io.BytesIO(content), purpose="dataset") == 3000
    found = list(dataset_rows(io.BytesIO(content)))
    assert [(row.instruction, row.response, row.place) for row in found[6:9]] == [
        (pairs[number]["prompt"], pairs[number]["response"], f"row {number + 1}") for number in (6, 7, 8)
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv(delimiter: str, end: str) -> None:
    written = ["topic,prompt,response", '1,"a ""b""\n\nc",d', "", "2,e,", '3,"f,g",5']
    content = "\ufeff" + end.join(line.replace(",", delimiter) for line in written)
    rows = list(dataset_rows(io.BytesIO(content.encode())))
    assert [(row.instruction, row.response, row.line) for row in rows] == [
        ('a "b"\n\nc', "d", 2),
        ("e", "", 6),
        (f"f{delimiter}g", "5", 7),
    ]
    assert check_file(io.BytesIO(content.encode()), purpose="dataset") == 3


def test_a_conversation_as_each_of_its_writers_has_it() -> None:
    say = [("system", "S"), ("user", "Hi"), ("assistant", "Hello"), ("user", "Who?"), ("assistant", "Me")]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[role], "value": text} for role, text in say]
    messages = [{"role": role, "content": [{"type": "text", "text": part} for part in text]} for role, text in say]
    content = jsonl(
        {"conversations": turns},
        {"conversations": turns[1:], "system": "S"},
        {"messages": messages},
        {"messages": [{"role": "developer", "content": "S"}, *messages[1:]]},
        {"prompt": messages[:4], "completion": messages[4:]},
        {"prompt": messages[:4], "response": "Me"},
        # The last that is learned ends the row.
        {"messages": [*messages, messages[3], {**messages[4], "content": "no", "weight": 0}]},
    )
    for row in dataset_rows(io.BytesIO(content)):
        assert [*((message.role, message.content) for message in row.messages), ("assistant", row.response)] == say


def test_every_turn_that_is_learned() -> None:
    def turn(number: int, **more: Any) -> list[Any]:
        return [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}", **more}]

    greeting = {"role": "assistant", "content": "Ask."}
    content = jsonl(
        {"messages": [greeting, *turn(1), *turn(2, weight=0), *turn(3, weight=1)]},
        {"prompt": turn(1) + turn(2)[:1], "completion": turn(2)[1:] + turn(3)},
        {"prompt": "q4", "response": "a4"},
    )
    rows = list(dataset_rows(io.BytesIO(content), "all"))
    assert [(row.line, len(row.messages), row.response) for row in rows] == [
        (1, 2, "a1"), (1, 6, "a3"), (2, 3, "a2"), (2, 5, "a3"), (3, 1, "a4")
    ]  # fmt: skip
    assert [row.response for row in dataset_rows(io.BytesIO(content))] == ["a3", "a3", "a4"]
    # What is counted are rows.
    assert check_file(io.BytesIO(content), purpose="dataset") == 3


def test_calibration() -> None:
    def rows_of(*answers: str) -> bytes:
        return jsonl(*({"instruction": "a", "answer": answer} for answer in answers))

    assert check_file(io.BytesIO(rows_of("yes", "no", " yes")), purpose="calibration") == 3
    with pytest.raises(BadRows, match="answers of all 2 rows are the same"):
        check_file(io.BytesIO(rows_of("yes", " yes ")), purpose="calibration")
    with pytest.raises(BadRows, match="line 65: more than 64 different answers"):
        check_file(io.BytesIO(rows_of(*map(str, range(70)))), purpose="calibration")
    assert check_file(io.BytesIO(b"instruction,answer\na,yes\nb,no\n"), purpose="calibration") == 2
    with pytest.raises(BadRows, match='line 1: "answer" is empty'):
        check_file(io.BytesIO(rows_of(" ", "no")), purpose="calibration")


@pytest.mark.parametrize(
    ("content", "documents", "counted"),
    [
        (b'\xef\xbb\xbf{"text": "one"}\n\n{"text": ""}\n', ["one", ""], 2),
        (b"\xef\xbb\xbfone\r\n\r\ntwo\rthree", ["one\n\ntwo\nthree"], 2),
        (b"[1, 2]\n", ["[1, 2]\n"], 1),
        (b"[" * 100_000, ["[" * 100_000], 1),
        (b"[Bells]\n{stage left}\n", ["[Bells]\n{stage left}\n"], 2),
        (b'[{"text": "one"},\n {"text": "two"}]', ["one", "two"], 2),
        (b'[\n  {"text": "one"}\n]\n', ["one"], 1),
        (b'id,text\n1,"one\ntwo"\n', ["one\ntwo"], 1),
    ],
)
def test_corpus(content: bytes, documents: list[str], counted: int) -> None:
    assert list(rows.corpus_documents(io.BytesIO(content))) == documents
    assert check_file(io.BytesIO(content), purpose="corpus") == counted


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n",
        b"caf\xe9",
        b'{"text": "a"}\n{"words": "b"}\n',
        b'{"text": 1}',
        b'[{"text": "a"}, {"words": "b"}]',
        b'[{"text": "a"}, 7]',
        b'[{"text": "a"',
        b'{\n  "text": "a"\n}\n',
        b'{"text": "a',
        b'text\n"a',
    ],
)
def test_no_corpus(content: bytes) -> None:
    with pytest.raises(BadRows) as counted:
        check_file(io.BytesIO(content), purpose="corpus")
    with pytest.raises(BadRows) as read:
        list(rows.corpus_documents(io.BytesIO(content)))
    assert str(counted.value) == str(read.value)
