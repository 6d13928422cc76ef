"""The report of a run: what the student was, what it is, what its teacher is.

The dictionary made here travels in the trainer's last event into the job's row and to the user;
docs/evaluation.md describes it. It is JSON without NaN: a number that is not finite becomes null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SampleAnswer:
    """One dev prompt and what was answered to it."""

    prompt: str
    reference: str
    before: str | None
    """By the student before the method."""
    after: str | None
    teacher: str | None


def sample_answers_of(
    prompts: Sequence[str],
    references: Sequence[str],
    *,
    before: Sequence[str] | None,
    after: Sequence[str] | None,
    teacher: Sequence[str] | None,
    count: int,
) -> list[SampleAnswer]:
    """The first ``count`` rows side by side. Raises ValueError where the sequences differ in length."""
    absent: list[str | None] = [None] * len(prompts)
    rows = zip(prompts, references, before or absent, after or absent, teacher or absent, strict=True)
    return [SampleAnswer(*row) for row in list(rows)[:count]]


def build_report(
    *,
    verdict: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    teacher: Mapping[str, float],
    samples: Sequence[SampleAnswer],
    steps: int,
    train_seconds: float,
    student_parameters: int,
    teacher_parameters: int,
    settings: Mapping[str, Any],
    dataset: Mapping[str, Any],
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything the report holds, as JSON types.

    ``verdict`` says in a sentence which student it is. ``before``, ``after`` and ``teacher`` map names of metrics to
    numbers; ``settings`` are those that the numbers depend on (seeds, decoding, rows); ``dataset`` what became of its
    rows; ``details`` what is more than a number, such as curves. Raises TypeError where something is no JSON type.
    """
    report = {
        "verdict": verdict,
        "before": dict(before),
        "after": dict(after),
        "teacher": dict(teacher),
        "samples": [dataclasses.asdict(sample) for sample in samples],
        "steps": steps,
        "train_seconds": train_seconds,
        "student_parameters": student_parameters,
        "teacher_parameters": teacher_parameters,
        "settings": dict(settings),
        "dataset": dict(dataset),
        "details": dict(details or {}),
    }
    finite: dict[str, Any] = json.loads(json.dumps(_finite(report), allow_nan=False))
    return finite


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
