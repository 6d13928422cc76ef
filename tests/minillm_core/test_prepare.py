"""What cannot be seen before a job runs, as of models from a hub, the trainer refuses: it names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minillm_core.errors import UserError
from tests.minillm_core.tiny_runs import of_type, run_here, write_run
from tests.tiny_models import write_tiny_model

OTHER = {"prune_teacher": None, "model": "path:other"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "a student larger than its teacher": (
        {"layers": 6},
        {"student": OTHER},
        "student_larger_than_teacher",
        "/student/model",
    ),
    "over the teacher's context": (
        {},
        {"training": {"max_prompt_tokens": 96, "max_new_tokens": 161}},
        "context_too_short",
        "/training/max_new_tokens",
    ),
    "over the student's context": (
        {"layers": 2, "context": 107},
        {"student": OTHER},
        "context_too_short",
        "/training/max_new_tokens",
    ),
    "more layers than the teacher has": (
        {},
        {"student": {"prune_teacher": {"layers": 5}}},
        "too_many_layers",
        "/student/prune_teacher/layers",
    ),
    "no such dataset": ({}, {"dataset": {"file": "path:absent.jsonl"}}, "file_not_found", "/dataset/file"),
    "no such corpus": (
        {},
        {"pretrain_corpus": {"file": "path:absent.txt"}},
        "file_not_found",
        "/pretrain_corpus/file",
    ),
    "no such model": ({}, {"teacher": {"model": "path:absent"}}, "model_not_found", "/teacher/model"),
    "no such adapter": ({}, {"teacher": {"adapter": "path:absent"}}, "model_not_found", "/teacher/adapter"),
    "float16 on a CPU": ({}, {"training": {"dtype": "float16"}}, "dtype_unsupported", "/training/dtype"),
}
"""Another model beside the teacher, changes of the job; code and field of the refusal."""


@pytest.mark.parametrize("name", CASES)
def test_refused(tmp_path: Path, name: str) -> None:
    other, changes, code, param = CASES[name]
    folder = write_run(tmp_path, **changes)
    if other:
        write_tiny_model(folder / "other", **other)
    with pytest.raises(UserError) as raised:
        run_here(folder)
    assert (raised.value.code, raised.value.param) == (code, param)


def test_a_dataset_whose_every_prompt_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"every prompt is longer than max_prompt_tokens \(4\)") as raised:
        run_here(write_run(tmp_path, training={"max_prompt_tokens": 4}))
    assert raised.value.param == "/training/max_prompt_tokens"


def test_a_context_that_is_filled_exactly_will_do(tmp_path: Path) -> None:
    folder = write_run(tmp_path, student=OTHER, method={"type": "kd"}, training={"max_steps": 1, "eval_every": 1})
    write_tiny_model(folder / "other", layers=2, context=108)
    assert of_type(run_here(folder), "student")
