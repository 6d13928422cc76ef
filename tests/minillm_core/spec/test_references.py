"""Every field that names something is marked as what it is, and found."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import AfterValidator, BaseModel

from minillm_core.spec import JobSpec
from minillm_core.spec.base import FileReference, ModelReference, Names
from minillm_core.spec.references import Reference, references

SPEC: dict[str, Any] = {
    "teacher": {"model": "hub:a/b", "revision": "main", "adapter": "path:adapter"},
    "student": {"model": "path:small"},
    "dataset": {"file": "file_1"},
    "pretrain_corpus": {"file": "file_2"},
    "method": {"type": "minillm"},
    "evaluation": {"calibration_file": "file_3"},
}


def test_all_that_a_spec_names() -> None:
    assert list(references(JobSpec.model_validate(SPEC))) == [
        Reference("/teacher/model", "model", "hub:a/b", "teacher", "main"),
        Reference("/teacher/adapter", "adapter", "path:adapter", "teacher"),
        Reference("/student/model", "model", "path:small", "student"),
        Reference("/dataset/file", "file", "file_1", "dataset"),
        Reference("/pretrain_corpus/file", "file", "file_2", "corpus"),
        Reference("/evaluation/calibration_file", "file", "file_3", "calibration"),
    ]


def test_what_is_left_out_names_nothing() -> None:
    spec = {**SPEC, "student": {"prune_teacher": {"layers": 1}}, "teacher": {"model": "path:t"}, "evaluation": {}}
    del spec["pretrain_corpus"]
    assert [found.pointer for found in references(JobSpec.model_validate(spec))] == ["/teacher/model", "/dataset/file"]


def test_no_reference_goes_unmarked() -> None:
    """A new field of these types that is not marked would be missed by whoever checks, holds and deletes."""
    checks = {
        mark
        for alias in (FileReference, ModelReference)
        for mark in typing.get_args(alias)
        if isinstance(mark, AfterValidator)
    }
    for where, annotation, metadata in _fields(JobSpec):
        if checks & set(_marks(annotation)) or checks & {mark for mark in metadata if isinstance(mark, AfterValidator)}:
            assert any(isinstance(mark, Names) for mark in metadata), where


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, Any, list[Any]]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field.annotation, field.metadata
        for part in _types(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _fields(part)


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _types(part)


def _marks(annotation: Any) -> Iterator[AfterValidator]:
    return (part for part in _types(annotation) if isinstance(part, AfterValidator))
