"""From an example to the tokens of its prompt and of its response.

Where a prompt ends and a response begins is known by their lengths, never by a token: chat
templates put the end-of-text token inside prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from minillm_core.data.rendering import Conversation, RenderingFault, render_chats
from minillm_core.data.special_tokens import SpecialTokens
from minillm_core.errors import UserError
from minillm_core.spec.rows import Example, Message

Template = Literal["chat", "alpaca", "plain"]

_TURNS_TRIED = 8
_MARK = "answer-to-be-found"
PREAMBLE = "The following is a task for an assistant. Write the answer that completes it well."


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


def prompt_texts(
    examples: Sequence[Example],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    param: str = "/dataset/file",
) -> Iterator[str]:
    """The prompt of each example as text, as the model sees it up to the first token of the response.

    Raises UserError ``dataset_invalid`` at ``param``, with the row's place, when the template refuses a row (a
    conversation of several turns under ``alpaca``, roles that it does not know) or fails on what is in it, and
    ``template_invalid`` when the chat template fails on any conversation or takes more than its limits.
    """
    if template == "chat":
        yield from _chat_texts(examples, tokenizer, param)
        return
    for example in examples:
        if template == "plain":
            yield "\n\n".join(message.content for message in example.messages)
        else:
            yield _alpaca(example, param)


def prompt_text(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """:func:`prompt_texts` of one example."""
    (text,) = prompt_texts([example], template, tokenizer)
    return text


def render_prompt(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt, with the start token where the tokenizer puts one before a text.

    Raises as :func:`prompt_texts`.
    """
    return encode_prompt(prompt_text(example, template, tokenizer), template, tokenizer)


def _chat_texts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, param: str) -> Iterator[str]:
    try:
        conversations = (_conversation(example.messages) for example in examples)
        yield from render_chats(tokenizer, conversations, add_generation_prompt=True)
    except RenderingFault as fault:
        example = examples[fault.index]
        if fault.kind == "refused":
            raise _refused(example, f"the chat template refuses it: {fault}", param) from fault
        if (own := _own_fault(tokenizer, example)) is not None:
            raise _template_invalid(own) from fault
        raise _refused(example, f"the chat template fails on it: {fault}", param) from fault


def _own_fault(tokenizer: PreTrainedTokenizerBase, example: Example) -> RenderingFault | None:
    """What the chat template does wrong whatever is said: tried on the shortest conversations of the row's shape."""
    shape = [Message(message.role, "a") for message in example.messages[:_TURNS_TRIED]]
    for messages in ([Message("user", "a")], shape):
        try:
            list(render_chats(tokenizer, [_conversation(messages)], add_generation_prompt=True))
        except RenderingFault as fault:
            if fault.kind != "refused":
                return fault
    return None


def _conversation(messages: Sequence[Message]) -> Conversation:
    return [{"role": message.role, "content": message.content} for message in messages]


def _template_invalid(fault: RenderingFault) -> UserError:
    return UserError(
        "template_invalid",
        f"the chat template of the model's tokenizer cannot be used: {fault}. Mend it, or use dataset.template alpaca "
        "or plain",
        param="/dataset/template",
    )


def encode_prompt(
    text: str, template: Template, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens | None = None
) -> list[int]:
    """Token ids of a rendered prompt; ``special`` says what texts of special tokens in it mean."""
    special = special or SpecialTokens(tokenizer)
    if template == "chat":
        # The template writes every special token itself.
        return special.rendered_ids(text)
    if special.meaning == "text":
        bare, full = special.plain_ids(text), special.plain_ids(text, opened=True)
    else:
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        full = tokenizer(text, add_special_tokens=True)["input_ids"]
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
    which for some models (Gemma, base models with a chat template) is not the tokenizer's eos. Raises UserError
    ``template_invalid`` when the template takes more than its limits.
    """
    eos: int = tokenizer.eos_token_id
    if template != "chat":
        return eos
    turns = _conversation([Message("user", "a"), Message("assistant", _MARK)])
    try:
        (text,) = render_chats(tokenizer, [turns], add_generation_prompt=False)
    except RenderingFault as fault:
        if fault.kind == "limit":
            raise _template_invalid(fault) from fault
        return eos
    tail: list[int] = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
    return tail[0] if tail and tail[0] in tokenizer.added_tokens_decoder else eos


def _alpaca(example: Example, param: str) -> str:
    instruction, given, preamble = example.instruction, example.input, PREAMBLE
    if example.kind == "messages":
        system = [message.content for message in example.messages if message.role == "system"]
        asked = [message.content for message in example.messages if message.role != "system"]
        if len(asked) != 1 or len(system) > 1:
            raise _refused(example, "the alpaca template takes one user message: use dataset.template chat", param)
        instruction, preamble = asked[0], (system[0] if system else PREAMBLE)
    parts = [preamble, f"### Instruction:\n{instruction}"]
    if given.strip():
        parts.append(f"### Input:\n{given}")
    return "\n\n".join([*parts, "### Response:\n"])


def _refused(example: Example, reason: str, param: str) -> UserError:
    return UserError("dataset_invalid", f"{example.place}: {reason}", param=param)
