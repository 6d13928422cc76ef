"""A chat template is a program that comes with a model: whatever it does, the answer is a fault in its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minillm_core.data import rendering
from minillm_core.data.dataset import load_dataset
from minillm_core.data.rendering import LONGEST_TEMPLATE, RenderingFault, render_chats
from minillm_core.data.templates import end_token_id
from minillm_core.errors import UserError
from minillm_core.evaluate.calibration import read_calibration_file
from minillm_core.spec import FailureCategory
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

CHATS = [
    [{"role": "user", "content": "Grüße, 東京 🙂 \u2028 {{ 1 }}"}],
    [{"role": "system", "content": "S"}, {"role": "user", "content": "  a\n"}, {"role": "assistant", "content": ""}],
]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DEEP = "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "FIRST_SECONDS", 1.0)


def render(template: object, chats: object = None) -> list[str]:
    return list(render_chats(tiny_tokenizer(chat_template=template), chats or CHATS, add_generation_prompt=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [True, False])
def test_the_texts_are_the_tokenizers_own(prompt: bool) -> None:
    tokenizer = tiny_tokenizer()
    expected = [tokenizer.apply_chat_template(chat, add_generation_prompt=prompt, tokenize=False) for chat in CHATS]
    assert list(render_chats(tokenizer, CHATS, add_generation_prompt=prompt)) == expected


def test_many_long_rows_are_within_the_limits() -> None:
    chats = [[{"role": "user", "content": f"{number} " + "x" * 20_000}] for number in range(600)]
    assert [text.split()[1] for text in render(CHAT_TEMPLATE, chats)] == [str(number) for number in range(600)]


@pytest.mark.parametrize(
    ("template", "kind", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refused", "roles must alternate"),
        ("{% if %}", "failed", "line 1: Expected an expression"),
        ("{{ messages[0].content + 1 }}", "failed", "TypeError"),
        ("{{ missing.field }}", "failed", "UndefinedError"),
        ("{{ 1 // 0 }}", "failed", "ZeroDivisionError"),
        (DEEP, "failed", "RecursionError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "failed", ""),
        ("{{ '\ud800' }}", "failed", "surrogate"),
        ({"tool_use": "x"}, "failed", "no default"),
        (LOOP, "limit", "processor time"),
        ("{{ 'x' * 5000000000 }}", "limit", "memory"),
        ("{{ 'x' * 50000000 }}", "limit", "50,000,000 characters"),
        ("x" * (LONGEST_TEMPLATE + 1), "limit", "characters"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_a_template_can_do(template: object, kind: str, words: str) -> None:
    with pytest.raises(RenderingFault) as caught:
        render(template)
    assert (caught.value.kind, caught.value.index) == (kind, 0)
    assert words in str(caught.value) and len(str(caught.value)) < 2000


class TestWhoseFaultItIs:
    def load(self, folder: Path, template: str, content: str) -> UserError:
        rows = [{"prompt": "fine", "response": "b"}, {"prompt": content, "response": "b"}]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(UserError) as caught:
            load_dataset(folder / "rows.jsonl", "chat", tiny_tokenizer(chat_template=template), 64, 8, 0.5, 10, 0)
        assert caught.value.failure().category is FailureCategory.USER
        return caught.value

    @pytest.mark.parametrize("template", [LOOP, DEEP, "{{ messages[0].content + 1 }}"], ids=["loop", "deep", "type"])
    def test_the_templates_where_it_fails_on_anything(self, template: str, tmp_path: Path) -> None:
        error = self.load(tmp_path, template, "b")
        assert (error.code, error.param) == ("template_invalid", "/dataset/template")

    def test_the_rows_where_it_fails_on_that_alone(self, tmp_path: Path) -> None:
        error = self.load(tmp_path, "{% if messages[0].content == 'bad' %}{{ 1 // 0 }}{% endif %}ok", "bad")
        assert (error.code, error.param) == ("dataset_invalid", "/dataset/file")
        assert "line 2" in error.message and "ZeroDivisionError" in error.message

    def test_a_calibration_files(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text(
            '{"instruction": "a", "answer": "b"}\n{"instruction": "a", "answer": "c"}\n'
        )
        tokenizer = tiny_tokenizer(chat_template="{{ raise_exception('no') }}")
        with pytest.raises(UserError, match=r"line 1: .*no") as caught:
            read_calibration_file(tmp_path / "rows.jsonl", "chat", tokenizer, 64)
        assert (caught.value.code, caught.value.param) == ("dataset_invalid", "/evaluation/calibration_file")


def test_the_end_of_a_response_is_looked_for_within_the_limits() -> None:
    with pytest.raises(UserError) as caught:
        end_token_id("chat", tiny_tokenizer(chat_template=LOOP))
    assert caught.value.code == "template_invalid"
    broken = tiny_tokenizer(chat_template="{{ 1 // 0 }}")
    assert end_token_id("chat", broken) == broken.eos_token_id
