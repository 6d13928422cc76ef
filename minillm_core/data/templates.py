"""From an example to the tokens of its prompt and of its response.

Where a prompt ends and a response begins is known by their lengths, never by a token: chat
templates put the end-of-text token inside prompts.
"""

from __future__ import annotations

from typing import Literal

import jinja2
from transformers import PreTrainedTokenizerBase

from minillm_core.data.formats import Example
from minillm_core.errors import UserError

Template = Literal["chat", "alpaca", "plain"]

_MARK = "answer-to-be-found"
_PREAMBLE = "The following is a task for an assistant. Write the answer that completes it well."


def check_template(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError ``template_unavailable`` when the tokenizer cannot render ``template``."""
    if template == "chat" and not tokenizer.chat_template:
        raise UserError(
            "template_unavailable",
            "the model's tokenizer has no chat template: use dataset.template alpaca or plain",
            param="/dataset/template",
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            "template_unavailable", "the model's tokenizer has no end-of-text token", param="/dataset/template"
        )


def prompt_text(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as text, as the model sees it up to the first token of the response.

    Raises UserError ``dataset_invalid`` when the template refuses the row: a conversation of
    several turns under ``alpaca``, or roles that the chat template does not know.
    """
    if template == "chat":
        messages = [{"role": message.role, "content": message.content} for message in example.messages]
        try:
            return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except jinja2.TemplateError as error:
            raise _refused(example, f"the chat template refuses it: {error}") from error
    if template == "plain":
        return "\n\n".join(message.content for message in example.messages)
    return _alpaca(example)


def render_prompt(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt, with the start token where the tokenizer puts one before a text.

    Raises as :func:`prompt_text`.
    """
    return encode_prompt(prompt_text(example, template, tokenizer), template, tokenizer)


def encode_prompt(text: str, template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a rendered prompt."""
    bare: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if template == "chat":
        # The template writes every special token itself.
        return bare
    full: list[int] = tokenizer(text, add_special_tokens=True)["input_ids"]
    # Some tokenizers also close a text with eos: a prompt is not at its end.
    closed = bool(full) and full[-1] == tokenizer.eos_token_id and full[-len(bare) :] != bare
    return full[:-1] if closed else full


def response_ids(
    response: str, template: Template, tokenizer: PreTrainedTokenizerBase, *, end_id: int | None = None
) -> list[int]:
    """Token ids of a response and the token that ends it; an empty response is that token alone.

    ``end_id`` is :func:`end_token_id`, for callers with many rows.
    """
    ids: list[int] = tokenizer(response, add_special_tokens=False)["input_ids"]
    return [*ids, end_token_id(template, tokenizer) if end_id is None else end_id]


def end_token_id(template: Template, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a response.

    Under ``chat`` it is the special token that the template writes after an assistant's message,
    which for some models (Gemma, base models with a chat template) is not the tokenizer's eos.
    """
    eos: int = tokenizer.eos_token_id
    if template != "chat":
        return eos
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except jinja2.TemplateError:
        return eos
    tail: list[int] = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
    return tail[0] if tail and tail[0] in tokenizer.added_tokens_decoder else eos


def _alpaca(example: Example) -> str:
    instruction, given, preamble = example.instruction, example.input, _PREAMBLE
    if example.kind == "messages":
        system = [message.content for message in example.messages if message.role == "system"]
        asked = [message.content for message in example.messages if message.role != "system"]
        if len(asked) != 1 or len(system) > 1:
            raise _refused(example, "the alpaca template takes one user message: use dataset.template chat")
        instruction, preamble = asked[0], (system[0] if system else _PREAMBLE)
    parts = [preamble, f"### Instruction:\n{instruction}"]
    if given.strip():
        parts.append(f"### Input:\n{given}")
    return "\n\n".join([*parts, "### Response:\n"])


def _refused(example: Example, reason: str) -> UserError:
    return UserError("dataset_invalid", f"line {example.line}: {reason}", param="/dataset/file")
