from typing import Any

import pytest
from pydantic import ValidationError

from api.http.problems import BadRequest
from api.http.validation import pointer, validation_problem
from minillm_core.spec import JobSpec

SPEC: dict[str, Any] = {
    "teacher": {"model": "path:teacher"},
    "student": {"prune_teacher": {"layers": 2}},
    "dataset": {"file": "file_0"},
    "method": {"type": "minillm"},
}


def faults_of(spec: Any) -> dict[str | None, str]:
    """param -> code of every fault that the spec has."""
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(spec)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    return {fault.param: fault.code for fault in validation_problem(errors, spec).errors}


def test_pointer_escapes() -> None:
    assert pointer(["a/b", "c~d", 0]) == "/a~1b/c~0d/0"
    assert pointer([]) == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": "red"}, {"/colour": "unknown_field"}),
        ({"training": {"learning_rat": 1}}, {"/training/learning_rat": "unknown_field"}),
        ({"training": {"learning_rate": -1}}, {"/training/learning_rate": "invalid_value"}),
        ({"method": {"type": "magic"}}, {"/method/type": "unknown_method"}),
        ({"method": {}}, {"/method/type": "missing_field"}),
        ({"method": {"type": "kd", "recipe": "paper"}}, {"/method/recipe": "unknown_field"}),
        ({"method": {"type": "minillm", "gamma": 2}}, {"/method/gamma": "invalid_value"}),
        ({"student": {"prune_teacher": {"layers": 0}}}, {"/student/prune_teacher/layers": "invalid_value"}),
        ({"student": {"prune_teacher": {"layers": "x"}}}, {"/student/prune_teacher/layers": "invalid_value"}),
        ({"student": {"prune_teacher": {"layers": [1, "x"]}}}, {"/student/prune_teacher/layers": "invalid_value",
                                                              "/student/prune_teacher/layers/1": "invalid_value"}),
        ({"student": {}}, {"/student": "invalid_value"}),
        ({"training": {"betas": [0.9, 2]}}, {"/training/betas/1": "invalid_value"}),
        ({"training": {"rows_per_step": 7}}, {"/method/rollouts_per_round": "invalid_value"}),
        ({"dataset": {}}, {"/dataset/file": "missing_field"}),
        ({"teacher": None}, {"/teacher": "invalid_value"}),
        ({"metadata": {"a": 1}}, {"/metadata/a": "invalid_value"}),
    ],
)  # fmt: skip
def test_names_the_field(change: dict[str, Any], expected: dict[str, str]) -> None:
    assert faults_of({**SPEC, **change}) == expected


def test_every_fault_is_told() -> None:
    faults = faults_of({**SPEC, "training": {"learning_rate": -1, "max_steps": 0}, "seed": -1})
    assert faults == dict.fromkeys(["/training/learning_rate", "/training/max_steps", "/seed"], "invalid_value")


def test_no_json_is_a_bad_request() -> None:
    error = {
        "type": "json_invalid",
        "loc": ("body", 3),
        "msg": "JSON decode error",
        "ctx": {"error": "Expecting value"},
    }
    problem = validation_problem([error], "{]")
    assert isinstance(problem, BadRequest)
    assert problem.code == "invalid_json"
    assert "character 3" in problem.detail


@pytest.mark.parametrize("location", [("query", "limit"), ("query", "limit", 0)])
def test_query_parameters_go_by_their_name(location: tuple[str | int, ...]) -> None:
    error = {"type": "int_parsing", "loc": location, "msg": "should be an integer"}
    assert validation_problem([error], None).param == "limit"


def test_what_any_branch_of_a_union_would_have_taken_is_told() -> None:
    spec = {**SPEC, "student": {"prune_teacher": {"layers": "x"}}}
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(spec)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    (fault,) = validation_problem(errors, spec).errors
    assert "integer" in fault.detail and "; or: A list is needed here." in fault.detail


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teacher": "path:teacher"}, "A JSON object is needed here."),
        ({"method": {}}, "This field is needed: it says which kind this is."),
        ({"dataset": {}}, "This field is needed."),
    ],
)
def test_no_words_of_python(change: dict[str, Any], sentence: str) -> None:
    spec = {**SPEC, **change}
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(spec)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    assert [fault.detail for fault in validation_problem(errors, spec).errors] == [sentence]
