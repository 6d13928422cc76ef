"""Conversations as people write them down: OpenAI's messages, ShareGPT's turns, TRL's prompt and completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minillm_core.spec.row_files import Object

ROLES = ("system", "user", "assistant", "tool")

_ALSO_CALLED = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
}
_CALLS = ("tool_calls", "function_call")


@dataclass(frozen=True)
class Message:
    role: str
    content: str


def conversation(row: Object, answer: str | None = None) -> tuple[list[Message], list[int]]:
    """The messages of a row, to the last that is learned, and the places of those that are learned.

    They are those of `messages` or `conversations`, or, where the key ``answer`` is given, of `prompt` and that key,
    of which a text is one message and the prompt's are not learned. Raises ValueError with what is wrong.
    """
    if row.get("tools"):
        raise ValueError('"tools" cannot be told to the model yet: leave the row out, or the key')
    if answer is None:
        key = "messages" if "messages" in row else "conversations"
        if not isinstance(row[key], list) or len(row[key]) < 2:
            raise ValueError(f'"{key}" must be a list of at least two: a prompt and the assistant\'s answer')
        items = [(f"{key}[{number}]", item) for number, item in enumerate(row[key])]
        if key == "conversations" and row.get("system"):
            items.insert(0, ('"system"', {"from": "system", "value": row["system"]}))
        asked = 0
    else:
        prompt = _listed(row["prompt"], "prompt", "user")
        items = prompt + _listed(row[answer], answer, "assistant")
        asked = len(prompt)
    messages: list[Message] = []
    learned: list[int] = []
    for number, (name, item) in enumerate(items):
        message, weight = _message(name, item, blank=number == len(items) - 1)
        messages.append(message)
        if message.role == "assistant" and weight and number >= asked:
            learned.append(number)
    if messages[-1].role != "assistant":
        raise ValueError("the last message must be the assistant's: it is the response to learn from")
    if not any(message.role == "user" for message in messages):
        raise ValueError("there is no message of the user")
    learned = [place for place in learned if any(message.role == "user" for message in messages[:place])]
    if not learned:
        raise ValueError("there is no message of the assistant to learn: none follows one of the user with weight 1")
    return messages[: learned[-1] + 1], learned


def text_of(row: Object, key: str, *, blank: bool = False) -> str:
    """The text `row[key]`; raises ValueError unless it is one that a tokenizer can take."""
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f'"{key}" must be text, not {type(value).__name__}')
    if not blank and not value.strip():
        raise ValueError(f'"{key}" is empty')
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f'"{key}" has half of a surrogate pair, which is no character') from None
    return value


def _listed(value: Any, key: str, role: str) -> list[tuple[str, Any]]:
    if isinstance(value, list):
        if not value:
            raise ValueError(f'"{key}" has no messages')
        return [(f"{key}[{number}]", item) for number, item in enumerate(value)]
    return [(f'"{key}"', {"role": role, "content": value})]


def _message(name: str, item: Any, *, blank: bool) -> tuple[Message, int]:
    """A message and its weight, 0 or 1. Raises ValueError, with the name."""
    if not isinstance(item, dict):
        raise ValueError(f'{name} must be an object with "role" and "content"')
    if call := next((key for key in _CALLS if item.get(key)), None):
        raise ValueError(f"{name} has {call}, which cannot be learned yet: leave the row out")
    role_key, content_key = ("from", "value") if "role" not in item and "from" in item else ("role", "content")
    if not {role_key, content_key} <= item.keys():
        raise ValueError(f'{name} must be an object with "role" and "content"')
    role = item[role_key]
    if role == "function_call":
        raise ValueError(f"{name} is a function_call, which cannot be learned yet: leave the row out")
    role = _ALSO_CALLED.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"{name} has a role that is none of {', '.join(ROLES)}")
    weight = item.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise ValueError(f'{name}: "weight" must be 0 or 1')
    try:
        content = text_of({content_key: _joined(item[content_key])}, content_key, blank=blank)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Message(role, content), 1 if weight is None else int(weight)


def _joined(content: Any) -> Any:
    """The text of a content that is a list of parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"part {number} is {str(kind)[:40]!r}: parts must be of text")
        texts.append(part["text"])
    return "".join(texts)
