"""What a job lays down for its chat template acts wherever the template is rendered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from minillm_core.data.template_defaults import Value, set_defaults
from minillm_core.data.templates import prompt_text
from minillm_core.errors import UserError
from minillm_core.spec.rows import Example, Message
from tests.minillm_core.tiny_runs import of_type, run_here, write_run
from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

ASK = Example("prompt", (Message("user", "Who?"),), "Me", 1)
TOLD = Example("messages", (Message("system", "S"), Message("user", "Who?")), "Me", 1)
NASTY = 'it\'s "so" {% endif %} {{ x }} #} \\n \\u0041\n\t é🙂'


@pytest.mark.parametrize("value", [True, False, 7, -1, 0.5, 1e300, "", NASTY])
def test_a_variable_is_what_was_given_unless_it_is_passed(value: Value) -> None:
    own = "  {% macro said() %}{{ kind }}|{{ kind is string }}{% endmacro %}\n{{ said() }}"
    tokenizer = tiny_tokenizer(chat_template=own)
    messages = [{"role": "user", "content": "Who?"}]
    passed = tokenizer.apply_chat_template(messages, tokenize=False, kind=value)
    set_defaults(tokenizer, {"kind": value})
    assert prompt_text(ASK, "chat", tokenizer) == passed
    assert tokenizer.apply_chat_template(messages, tokenize=False, kind=3).endswith("3|False")


@pytest.mark.parametrize("own", [CHAT_TEMPLATE, "\n\n" + CHAT_TEMPLATE, "  " + CHAT_TEMPLATE])
def test_a_system_prompt_for_rows_without_one(own: str) -> None:
    plain, given = tiny_tokenizer(chat_template=own), tiny_tokenizer(chat_template=own)
    set_defaults(given, {}, NASTY)
    said = Example("messages", (Message("system", NASTY), *ASK.messages), "Me", 1)
    assert prompt_text(ASK, "chat", given) == prompt_text(said, "chat", plain)
    assert prompt_text(TOLD, "chat", given) == prompt_text(TOLD, "chat", plain)


def test_nothing_given_changes_nothing() -> None:
    tokenizer = tiny_tokenizer()
    set_defaults(tokenizer, {})
    assert tokenizer.chat_template == CHAT_TEMPLATE
    set_defaults(without := tiny_tokenizer(chat_template=None), {"kind": 1}, "S")
    assert without.chat_template is None


def test_a_variable_that_the_template_does_not_read() -> None:
    with pytest.raises(UserError, match=r"no variable enable_thinkin$") as caught:
        set_defaults(tiny_tokenizer(chat_template="{{ enable_thinking }}"), {"enable_thinkin": False})
    assert caught.value.param == "/dataset/template_arguments/enable_thinkin"


def test_a_run_learns_and_exports_with_them(tmp_path: Path) -> None:
    talk = [{"role": role, "content": "The river"} for role in ("user", "assistant") * 2]
    given = {"system_prompt": "Be brief.", "train_on": "all"}
    folder = write_run(tmp_path, method={"type": "sft"}, training={"max_steps": 1}, dataset=given)
    rows = [{"messages": [{"role": "user", "content": f"question {index}"}, *talk[1:]]} for index in range(8)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = run_here(folder)
    (student,) = of_type(found, "student")
    assert student["report"]["dataset"]["rows"] == 16
    tokenizer = AutoTokenizer.from_pretrained(folder / student["path"])
    messages = [{"role": "user", "content": "Hi"}]
    whole = [{"role": "system", "content": "Be brief."}, *messages]
    render = tokenizer.apply_chat_template
    assert render(messages, tokenize=False) == render(whole, tokenize=False)
    assert "Be brief." in render(messages, tokenize=False)
