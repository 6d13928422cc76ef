"""The README.md of an exported student: what it is, how it was made, what it scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from minillm_core.spec import JobSpec


class Score(NamedTuple):
    """One measurement before and after the method; None where it was not taken."""

    before: float | None
    after: float | None


class Sample(NamedTuple):
    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class RunFacts:
    """What the card says beside the spec."""

    parameters: int
    teacher_parameters: int
    train_rows: int
    dev_rows: int
    steps: int
    job_id: str | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    samples: Sequence[Sample] = ()


def model_card(spec: JobSpec, facts: RunFacts) -> str:
    """Markdown with the front matter that model hubs read."""
    title = spec.name or facts.job_id or "Distilled student"
    front = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [distillation, minillm-service]"]
    if spec.teacher.model.startswith("hub:"):
        front.append(f"base_model: {json.dumps(spec.teacher.model.removeprefix('hub:'))}")
    rows = {
        "job": facts.job_id or "run by hand",
        "teacher": _revised(spec.teacher.model, spec.teacher.revision) + f", {_count(facts.teacher_parameters)}",
        "student": _student(spec) + f", {_count(facts.parameters)}",
        "method": spec.method.type,
        "steps": str(facts.steps),
        "rows": f"{facts.train_rows} to train on, {facts.dev_rows} held out",
        "prompt template": spec.dataset.template,
        "seed": str(spec.seed),
    }
    parts = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {_line(title)}",
        "A small language model distilled from a larger one. Its licence and its limits are those of the teacher "
        "and of the data it was trained on.",
        _table(("", ""), [(name, _line(value)) for name, value in rows.items()]),
    ]
    if facts.scores:
        scores = [(name, _number(score.before), _number(score.after)) for name, score in facts.scores.items()]
        parts += [
            "## Scores",
            "On held-out rows, before the distillation (after any fine-tuning) and after it.",
            _table(("", "before", "after"), scores),
        ]
    parts += ["## Use", _usage(spec.dataset.template)]
    if facts.samples:
        parts.append("## Answers before and after")
        parts += [_sample(sample) for sample in facts.samples]
    settings = spec.model_dump_json(indent=1, include={"method", "training", "dataset", "student", "teacher"})
    parts += ["## Settings", _fenced(settings, "json")]
    return "\n\n".join(parts) + "\n"


def _student(spec: JobSpec) -> str:
    if spec.student.prune_teacher is not None:
        origin = f"{spec.student.prune_teacher.count} of the teacher's layers"
    else:
        origin = _revised(str(spec.student.model), spec.student.revision)
    return origin + (f", LoRA of rank {spec.student.lora.rank} merged" if spec.student.lora else "")


def _usage(template: str) -> str:
    if template == "chat":
        prompt = (
            'inputs = tokenizer.apply_chat_template([{"role": "user", "content": "..."}],\n'
            '                                       add_generation_prompt=True, return_dict=True, return_tensors="pt")'
        )
    else:
        prompt = 'inputs = tokenizer("...", return_tensors="pt")'
    return _fenced(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("<this folder>")\n'
        'model = AutoModelForCausalLM.from_pretrained("<this folder>")\n'
        f"{prompt}\n"
        "output = model.generate(**inputs, max_new_tokens=128)\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
        "python",
    )


def _sample(sample: Sample) -> str:
    return "\n\n".join(
        f"{label}\n\n{_fenced(text, 'text')}"
        for label, text in (("Prompt", sample.prompt), ("Before", sample.before), ("After", sample.after))
    )


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _fenced(text: str, language: str) -> str:
    # A fence longer than any in the text: a model's answer may hold one.
    longest = max((len(line) - len(line.lstrip("`")) for line in text.splitlines()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _revised(model: str, revision: str | None) -> str:
    return f"{model} at {revision}" if revision else model


def _line(text: str) -> str:
    return " ".join(text.split())


def _count(parameters: int) -> str:
    return f"{parameters:,} parameters"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
