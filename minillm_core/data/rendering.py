"""Conversations as text by a model's chat template, in a process of its own that has limits.

A chat template is a program that comes with a model. Jinja's sandbox keeps it from files and from code, but not from
looping for ever or from filling the memory, and nothing inside a process can stop either. So a forked process renders,
under limits of processor time and memory that the kernel holds; it has the tokenizer as it is and need not load it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import json
import multiprocessing
import os
import random
import resource
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from multiprocessing.connection import Connection
from typing import Any, Literal

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

Conversation = Sequence[dict[str, Any]]
Kind = Literal["refused", "failed", "limit"]

LONGEST_TEMPLATE = 1 << 20
"""Characters of a chat template; the longest in use have about 20,000."""
# What all rows before have left over is there for the next: one long row is no fault, each row being slow is.
FIRST_SECONDS = 2.0
SECONDS_PER_ROW = 0.01
SECONDS_PER_CHARACTER = 1e-6
MEMORY_BYTES = 1 << 30
"""Beyond what the process has when it begins."""
FIRST_CHARACTERS = 1 << 20
CHARACTERS_PER_ROW = 16 * 1024
CHARACTERS_PER_CHARACTER = 8

_BATCH_ROWS = 256
_BATCH_CHARACTERS = 1 << 20


_clock: ContextVar[dt.datetime | None] = ContextVar("clock", default=None)


@contextlib.contextmanager
def clock_at(moment: dt.datetime) -> Iterator[None]:
    """Let templates that write the date or the time find ``moment`` within, whatever the time is."""
    token = _clock.set(moment)
    try:
        yield
    finally:
        _clock.reset(token)


class RenderingFault(Exception):
    """A conversation that was not rendered; the message is what the template or its limit says.

    ``kind`` is ``refused`` where the template itself refuses the conversation (``raise_exception``), ``failed`` where
    it breaks (no Jinja, an undefined name, a TypeError) and ``limit`` where it takes too much. ``index`` is the
    conversation's place among those given.
    """

    def __init__(self, kind: Kind, reason: str, index: int) -> None:
        super().__init__(reason)
        self.kind = kind
        self.index = index


def render_chats(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Conversation], *, add_generation_prompt: bool
) -> Iterator[str]:
    """The text of each conversation, in order, by ``tokenizer.apply_chat_template``.

    Raises RenderingFault at the first that cannot be rendered.
    """
    template = tokenizer.chat_template
    longest = max(len(str(text)) for text in (template.values() if isinstance(template, dict) else [template]))
    if longest > LONGEST_TEMPLATE:
        raise RenderingFault("limit", f"it has {longest:,} characters, more than {LONGEST_TEMPLATE:,}", 0)
    here, there = multiprocessing.Pipe()
    # Forked: a new interpreter would take a second to import what renders.
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(there, here, tokenizer, add_generation_prompt), daemon=True
    )
    process.start()
    there.close()
    try:
        index = 0
        for batch in _batches(conversations):
            texts = _ask(here, process, batch, index)
            for text in texts:
                yield text
                index += 1
    finally:
        here.close()
        process.kill()
        process.join()
        process.close()


def _ask(
    pipe: Connection, process: multiprocessing.process.BaseProcess, batch: Sequence[Conversation], index: int
) -> Iterator[str]:
    with contextlib.suppress(OSError):  # It is gone, and why is read below.
        pipe.send_bytes(json.dumps(batch).encode())
    for place in range(len(batch)):
        try:
            answer = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            process.join()
            raise RenderingFault("limit", _why_ended(process.exitcode), index + place) from None
        if "text" not in answer:
            raise RenderingFault(answer["kind"], answer["reason"], index + place)
        yield answer["text"]


def _why_ended(status: int | None) -> str:
    if status == -signal.SIGXCPU:
        return f"it takes more than {FIRST_SECONDS:.0f} s of processor time"
    name = signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"
    return f"the process that renders it was ended by {name}"


def _batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    batch: list[Conversation] = []
    characters = 0
    for conversation in conversations:
        batch.append(conversation)
        characters += _characters(conversation)
        if len(batch) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _characters(conversation: Conversation) -> int:
    return sum(len(value) for message in conversation for value in message.values() if isinstance(value, str))


# ------------------------------------------------------------------------------------- the forked process


def _serve(
    pipe: Connection, other_end: Connection, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool
) -> None:
    other_end.close()
    # The trainer's own handlers would set its flags here, and its garbage is not ours to finalise.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    gc.freeze()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, _address_space() + MEMORY_BYTES)
    random.seed(0)  # Jinja has a filter that draws.
    if (moment := _clock.get()) is not None:
        # What templates ask for the time asks this name, and nothing but data can be given to them. The process is our
        # own and ends with the rendering.
        chat_template_utils.datetime = _Clock(moment)
    seconds, room = FIRST_SECONDS, FIRST_CHARACTERS
    try:
        while True:
            for conversation in json.loads(pipe.recv_bytes()):
                characters = _characters(conversation)
                seconds += SECONDS_PER_ROW + SECONDS_PER_CHARACTER * characters
                room += CHARACTERS_PER_ROW + CHARACTERS_PER_CHARACTER * characters
                _limit(resource.RLIMIT_CPU, int(seconds))
                answer = _render(tokenizer, conversation, add_generation_prompt, room)
                room -= len(answer.get("text", ""))
                pipe.send_bytes(json.dumps(answer).encode())
    except (EOFError, OSError):
        os._exit(0)
    except BaseException:
        os._exit(1)


class _Clock:
    def __init__(self, moment: dt.datetime) -> None:
        self._moment = moment

    def now(self) -> dt.datetime:
        return self._moment


def _render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, add_generation_prompt: bool, room: int
) -> dict[str, str]:
    try:
        text = str(
            tokenizer.apply_chat_template(
                list(conversation), add_generation_prompt=add_generation_prompt, tokenize=False
            )
        )
        if len(text) > room:
            return {"kind": "limit", "reason": f"it writes {len(text):,} characters for one conversation"}
        text.encode()
        return {"text": text}
    except MemoryError:
        return {"kind": "limit", "reason": f"it takes more than {MEMORY_BYTES >> 30} GiB of memory"}
    except UnicodeEncodeError:
        return {"kind": "failed", "reason": "it writes half of a surrogate pair, which is no character"}
    except jinja2.TemplateSyntaxError as error:
        return {"kind": "failed", "reason": f"line {error.lineno}: {error.message}"}
    except jinja2.TemplateError as error:
        # What raise_exception raises is of exactly this class; an undefined name is of one below it.
        kind = "refused" if type(error) is jinja2.TemplateError else "failed"
        return {"kind": kind, "reason": _told(error)}
    except Exception as error:
        return {"kind": "failed", "reason": _told(error)}


def _told(error: Exception) -> str:
    text = str(error)[:1000]
    return text if type(error) is jinja2.TemplateError else f"{type(error).__name__}: {text}".rstrip(": ")


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, hard))


def _address_space() -> int:
    """Bytes that this process has mapped: with an accelerator it is many times the machine's memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
