"""Talk to a finished student: ``python -m minillm_core.chat PATH``.

Without further options it is a conversation on the terminal; ``--prompt TEXT`` answers once and ends;
``--jsonl`` reads ``{"prompt": ...}``, ``{"messages": [...]}`` or ``{"text": ...}`` lines (the last a prompt that is
rendered already, such as those of a job's report) from standard input and writes one JSON object a line: first
``{"class", "parameters"}`` of the model, then ``{"prompt", "answer", "tokens"}`` for each.

The model is loaded with ``AutoModelForCausalLM`` alone, from local files alone: what this can load, any program
that uses transformers can.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.utils import logging as transformers_logging

from minillm_core.data.chat_template import trained_with
from minillm_core.data.rendering import RenderingFault, render_chats
from minillm_core.data.templates import encode_prompt
from minillm_core.models.loading import load_tokenizer

Message = dict[str, str]


class Student:
    """A model with its tokenizer, in inference mode."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        self.model.eval()

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def render(self, messages: list[Message]) -> str:
        """The conversation up to the answer: by the chat template, or as plain text without one.

        Raises ValueError where the chat template refuses it, fails or takes more than its limits.
        """
        if self.tokenizer.chat_template:
            try:
                (text,) = render_chats(self.tokenizer, [messages], add_generation_prompt=True)
            except RenderingFault as fault:
                raise ValueError(f"the chat template does not take it: {fault}") from fault
            return text
        return "\n\n".join(message["content"] for message in messages)

    def encode(self, text: str) -> dict[str, Any]:
        """Tensors (1, T) of a rendered prompt. A chat template writes every special token itself.

        The prompts of a report are without the start token where the student was trained by another template.
        """
        template = self.tokenizer.chat_template
        start = self.tokenizer.bos_token
        if trained_with(template) != "chat" and not (start and text.startswith(start)):
            ids = torch.tensor([encode_prompt(text, trained_with(template), self.tokenizer)], dtype=torch.long)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return dict(self.tokenizer(text, return_tensors="pt", add_special_tokens=not template))

    @torch.inference_mode()
    def answer(
        self, text: str, *, max_new_tokens: int, temperature: float, streamer: TextStreamer | None = None
    ) -> tuple[str, int]:
        """The answer to a rendered prompt and its number of tokens; greedy at temperature 0.

        Raises ValueError for a prompt that is empty or longer than the model's context.
        """
        inputs = self.encode(text)
        length = inputs["input_ids"].shape[1]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if length == 0:
            raise ValueError("the prompt is empty")
        if limit is not None and length >= limit:
            raise ValueError(f"the prompt has {length} tokens and the model's context {limit}")
        room = max_new_tokens if limit is None else min(max_new_tokens, limit - length)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        pad = self.tokenizer.pad_token_id
        output = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=room,
            pad_token_id=pad if pad is not None else self.tokenizer.eos_token_id,
            streamer=streamer,
            **sampling,
        )
        new = output[0, length:]
        return self.tokenizer.decode(new, skip_special_tokens=True).strip(), len(new)


def _asked(student: Student, line: str) -> tuple[str, str]:
    """The question of one input line, as given and rendered. Raises ValueError where there is none."""
    given = json.loads(line)
    if not isinstance(given, dict):
        raise ValueError("a line is an object with prompt, messages or text")
    if isinstance(given.get("text"), str):
        return given["text"], given["text"]
    messages = given.get("messages")
    if isinstance(given.get("prompt"), str):
        messages = [{"role": "user", "content": given["prompt"]}]
    if not isinstance(messages, list) or not messages:
        raise ValueError("a line has prompt, messages or text")
    messages = [{"role": str(message["role"]), "content": str(message["content"])} for message in messages]
    return messages[-1]["content"], student.render(messages)


def _serve_jsonl(student: Student, arguments: argparse.Namespace) -> None:
    print(json.dumps({"class": type(student.model).__name__, "parameters": student.parameters}), flush=True)
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            prompt, text = _asked(student, line)
            answer, tokens = student.answer(
                text, max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature
            )
            reply = {"prompt": prompt, "answer": answer, "tokens": tokens}
        except (ValueError, KeyError, TypeError) as error:
            reply = {"error": str(error)}
        print(json.dumps(reply, ensure_ascii=False), flush=True)


def _converse(student: Student, arguments: argparse.Namespace) -> None:
    """One message a line, the whole conversation remembered; `/new` forgets it, Ctrl-D ends.

    Where nobody types, the answers alone are printed.
    """
    typed = sys.stdin.isatty()
    if typed:
        print(f"{arguments.folder} ({student.parameters:,} parameters). /new starts afresh, Ctrl-D ends.")
    streamer = TextStreamer(student.tokenizer, skip_prompt=True, skip_special_tokens=True)
    history: list[Message] = []
    while True:
        try:
            said = input("> " if typed else "").strip()
        except (EOFError, KeyboardInterrupt):
            if typed:
                print()
            return
        if said == "/new":
            history = []
        elif said:
            history.append({"role": "user", "content": said})
            try:
                answer, _ = student.answer(
                    student.render(history),
                    max_new_tokens=arguments.max_new_tokens,
                    temperature=arguments.temperature,
                    streamer=streamer,
                )
                history.append({"role": "assistant", "content": answer})
            except KeyboardInterrupt:
                print("\n(stopped)")
                history.pop()
            except ValueError as error:
                print(f"{error}: /new starts afresh")
                history.pop()


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minillm_core.chat", description="Talk to a finished student.")
    parser.add_argument("folder", type=Path, help="folder of the model, as downloaded")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--prompt", help="answer this and end")
    mode.add_argument("--jsonl", action="store_true", help="answer JSON lines from standard input")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(given)
    if not (arguments.folder / "config.json").is_file():
        parser.error(f"{arguments.folder} is no model: it has no config.json")
    if arguments.max_new_tokens < 1 or arguments.temperature < 0:
        parser.error("--max-new-tokens must be at least 1 and --temperature at least 0")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(arguments.seed)
    try:
        student = Student(arguments.folder)
    except Exception as error:
        # Whatever is wrong with the folder: each library below has its own way to say so.
        reason = str(error).strip().partition("\n")[0]
        print(f"{arguments.folder} cannot be loaded as a model: {reason} ({type(error).__name__})", file=sys.stderr)
        return 1
    if arguments.jsonl:
        _serve_jsonl(student, arguments)
    elif arguments.prompt is not None:
        try:
            answer, _ = student.answer(
                student.render([{"role": "user", "content": arguments.prompt}]),
                max_new_tokens=arguments.max_new_tokens,
                temperature=arguments.temperature,
            )
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        print(answer)
    else:
        _converse(student, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
