"""Prompts and responses become tokens that join without a seam."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing

from minillm_core.data.templates import check_template, end_token_id, prompt_text, render_prompt, response_ids
from minillm_core.errors import UserError
from minillm_core.spec.rows import Example, Message
from tests.tiny_models import CHAT_TEMPLATE, END, START, tiny_tokenizer

ASK = Example("instruction", (Message("user", "Add.\n\n2 2"),), "4", 1, "Add.", "2 2")
TALK = Example(
    "messages", (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Who?")), "Me", line=9
)


def test_chat_is_the_tokenizers_own_template_with_eos_inside() -> None:
    tokenizer = tiny_tokenizer()
    messages = [{"role": message.role, "content": message.content} for message in TALK.messages]
    ids = render_prompt(TALK, "chat", tokenizer)
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids.count(tokenizer.eos_token_id) == 3
    whole = [*messages, {"role": "assistant", "content": "Me"}]
    expected = tokenizer.apply_chat_template(whole, return_dict=False)
    joined = ids + response_ids("Me", "chat", tokenizer)
    assert joined == expected[: len(joined)]


@pytest.mark.parametrize("starts", [False, True])
def test_alpaca_and_plain_begin_as_the_tokenizer_begins_a_text(starts: bool) -> None:
    tokenizer = tiny_tokenizer(starts=starts)
    for template in ("alpaca", "plain"):
        ids = render_prompt(ASK, template, tokenizer)
        assert (ids[0] == tokenizer.bos_token_id) is starts
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt_text(ASK, template, tokenizer)
        assert tokenizer.bos_token_id not in response_ids("4", template, tokenizer)
    text = prompt_text(ASK, "alpaca", tokenizer)
    assert "### Instruction:\nAdd.\n" in text and "### Input:\n2 2\n" in text and text.endswith("### Response:\n")
    assert prompt_text(ASK, "plain", tokenizer) == "Add.\n\n2 2"


def test_a_closing_eos_of_the_tokenizer_is_not_part_of_a_prompt() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, tokenizer.bos_token_id), (END, tokenizer.eos_token_id)]
    )
    ids = render_prompt(ASK, "plain", tokenizer)
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids


def test_alpaca_takes_a_system_message_but_no_conversation() -> None:
    tokenizer = tiny_tokenizer()
    one = Example("messages", (Message("system", "Be brief."), Message("user", "Who?")), "Me", 3)
    assert prompt_text(one, "alpaca", tokenizer).startswith("Be brief.\n\n### Instruction:\nWho?")
    with pytest.raises(UserError, match=r"line 9: .*one user message"):
        prompt_text(TALK, "alpaca", tokenizer)


def test_a_row_that_the_chat_template_refuses_is_named() -> None:
    tokenizer = tiny_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match=r"line 9: .*roles must alternate"):
        render_prompt(TALK, "chat", tokenizer)


def test_empty_response_is_the_end_token() -> None:
    tokenizer = tiny_tokenizer()
    assert response_ids("", "plain", tokenizer) == [tokenizer.eos_token_id]


def test_end_token_is_what_the_chat_template_writes() -> None:
    tokenizer = tiny_tokenizer(chat_template=CHAT_TEMPLATE.replace(END, START))
    assert end_token_id("chat", tokenizer) == tokenizer.bos_token_id
    assert end_token_id("plain", tokenizer) == tokenizer.eos_token_id
    assert end_token_id("chat", tiny_tokenizer()) == tokenizer.eos_token_id
    # A template that puts something of its own before an answer.
    thinking = CHAT_TEMPLATE.replace("message['content']", "'(thought) ' + message['content']").replace(END, START)
    assert end_token_id("chat", tiny_tokenizer(chat_template=thinking)) == tokenizer.bos_token_id
    no_end = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    assert end_token_id("chat", tiny_tokenizer(chat_template=no_end)) == tokenizer.eos_token_id


def test_no_chat_template_is_refused() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    with pytest.raises(UserError, match="no chat template") as caught:
        check_template("chat", tokenizer)
    assert caught.value.param == "/dataset/template"
    check_template("plain", tokenizer)
