"""Every number of the contract has a smallest and a largest value, every text and list a maximal length."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from minillm_core.spec import JobSpec, TrainerEvent
from tests.schema_walk import unbounded, values

SPEC: dict[str, Any] = {
    "teacher": {"model": "path:teacher"},
    "student": {"model": "path:student"},
    "dataset": {"file": "file_0"},
    "method": {"type": "kd"},
}
SCHEMA = JobSpec.model_json_schema()
NO_INTEGER: list[Any] = [True, False, "1", 0.5, 10**30, -(10**30), 1e300, float("nan"), float("inf"), [], {}]
NO_NUMBER: list[Any] = [True, False, "1", 1e301, -1e301, 10**400, float("nan"), float("inf"), [], {}]


def fields(*kinds: str) -> list[tuple[str, ...]]:
    found = values(SCHEMA, SCHEMA["$defs"])
    return sorted({path for path, value in found if value.get("type") in kinds})


def with_value(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The spec with `value` at a path of the schema."""
    spec = copy.deepcopy(SPEC)
    if path[:2] == ("student", "prune_teacher"):
        spec["student"] = {}
    here: Any = spec
    *parents, last = path
    for index, name in enumerate(parents):
        if name.startswith("type="):
            here["type"] = name.removeprefix("type=")
        elif (*parents, last)[index + 1] == "*":
            here[name] = [0.1, 0.1]
            here = here[name]
        else:
            here = here.setdefault(name, {})
    here[0 if last == "*" else last] = value
    return spec


def test_nothing_is_unbounded() -> None:
    assert list(unbounded(SCHEMA, SCHEMA["$defs"])) == []


def test_events_hold_what_the_database_can() -> None:
    schema = TypeAdapter(TrainerEvent).json_schema()
    integers = [value for _, value in values(schema, schema["$defs"]) if value.get("type") == "integer"]
    assert integers and all(value["maximum"] <= 2**53 and value["minimum"] >= 0 for value in integers)


@pytest.mark.parametrize("path", fields("integer", "number"), ids="/".join)
def test_what_is_no_number_of_the_field(path: tuple[str, ...]) -> None:
    kinds = {value["type"] for found, value in values(SCHEMA, SCHEMA["$defs"]) if found == path and "type" in value}
    name = next(part for part in reversed(path) if part != "*")
    for value in NO_INTEGER if "integer" in kinds else NO_NUMBER:
        if isinstance(value, list) and "array" in kinds:
            continue
        with pytest.raises(ValidationError) as caught:
            JobSpec.model_validate(with_value(path, value))
        assert any(name in error["loc"] for error in caught.value.errors()), (value, caught.value)


@pytest.mark.parametrize("path", fields("boolean"), ids="/".join)
def test_what_is_no_boolean(path: tuple[str, ...]) -> None:
    for value in (0, 1, "true", "no"):
        with pytest.raises(ValidationError):
            JobSpec.model_validate(with_value(path, value))


@pytest.mark.parametrize("value", [7, 7.0])
def test_an_integer_may_be_written_with_a_point(value: float) -> None:
    """JSON has one kind of number: languages that know no integers write 7.0."""
    spec = JobSpec.model_validate({**SPEC, "seed": value, "evaluation": {"seeds": [value]}})
    assert (spec.seed, spec.evaluation.seeds) == (7, [7])
    assert isinstance(spec.seed, int)


@pytest.mark.parametrize(
    "change",
    [
        {"scheduling": {"max_runtime_seconds": 1_000_000_000_000}},
        {"scheduling": {"priority": False}},
        {"training": {"keep_checkpoints": 10**19}},
        {"training": {"max_steps": 10**30}},
        {"training": {"student_sft": {"epochs": 1e300}}},
        {"evaluation": {"seeds": [-1]}},
        {"evaluation": {"seeds": list(range(33))}},
        {"student": {"prune_teacher": {"layers": list(range(1001))}}},
        {"student": {"model": "path:" + "x" * 500}},
        {"metadata": {"x" * 65: ""}},
        {"metadata": {"": ""}},
        {"metadata": {"a": "x" * 513}},
        {"dataset": {"file": "file_0\n"}},
    ],
)
def test_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate({**SPEC, **change})
