"""A saved model answers from its folder: once, as JSON lines, and within its context."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from minillm_core import chat
from tests.tiny_models import write_tiny_model

CONTEXT = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("chat") / "student", context=CONTEXT)


def jsonl(folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert chat.main([str(folder), "--jsonl", "--max-new-tokens", "5"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_lines(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "river"}]}
    rendered = chat.Student(folder).render([{"role": "user", "content": "river"}])
    lines = [json.dumps({"prompt": "river"}), "", json.dumps(conversation), json.dumps({"text": rendered})]
    model, first, second, third = jsonl(folder, lines, monkeypatch, capsys)
    assert model["class"] == "LlamaForCausalLM"
    assert model["parameters"] > 0
    assert first["prompt"] == second["prompt"] == "river"
    assert 1 <= first["tokens"] <= 5
    assert (first["answer"], first["tokens"]) == (third["answer"], third["tokens"])
    assert third["prompt"] == rendered


def test_a_bad_line_is_answered_with_its_fault_and_the_next_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    too_long = json.dumps({"prompt": "the river " * CONTEXT})
    lines = ["no json", "[]", '{"messages": []}', '{"messages": [1]}', '{"text": ""}', too_long, '{"prompt": "river"}']
    _, *replies = jsonl(folder, lines, monkeypatch, capsys)
    assert [("error" in reply) for reply in replies] == [True] * 6 + [False]
    assert str(CONTEXT) in replies[5]["error"]


def test_an_answer_never_runs_past_the_context(folder: Path) -> None:
    student = chat.Student(folder)
    text = student.render([{"role": "user", "content": "river"}])
    length = student.encode(text)["input_ids"].shape[1]
    _, tokens = student.answer(text, max_new_tokens=1000, temperature=0.0)
    assert length + tokens <= CONTEXT


def test_without_a_terminal_the_answers_alone_are_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("river\n"))
    assert chat.main([str(folder), "--max-new-tokens", "3"]) == 0
    conversed = capsys.readouterr().out
    assert chat.main([str(folder), "--max-new-tokens", "3", "--prompt", "river"]) == 0
    assert conversed.strip() == capsys.readouterr().out.strip()


def test_a_folder_that_is_no_model_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert chat.main([str(tmp_path), "--prompt", "river"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path} cannot be loaded as a model: ")


def test_the_prompt_is_the_chat_templates_once(folder: Path) -> None:
    student = chat.Student(folder)
    messages = [{"role": "user", "content": "river"}]
    ids = student.encode(student.render(messages))["input_ids"][0].tolist()
    assert student.tokenizer.decode(ids) == student.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


def test_one_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.main([str(folder), "--prompt", "river", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_a_conversation(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("river\n\n/new\n" + "bridge " * 60 + "\nriver\n"))
    assert chat.main([str(folder), "--max-new-tokens", "3"]) == 0
    assert "/new starts afresh" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["{empty}"], "config.json"), (["{folder}", "--max-new-tokens", "0"], "at least 1"), (["{folder}", "--x"], "--x")],
)
def test_bad_input(
    folder: Path, tmp_path: Path, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        chat.main([option.format(folder=folder, empty=tmp_path) for option in options])
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err
