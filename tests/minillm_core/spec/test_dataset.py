"""What a job says of its dataset."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from minillm_core.spec import DatasetSpec


@pytest.mark.parametrize("value", [True, 3, -0.5, "low", ""])
def test_an_argument_of_the_template_is_a_plain_value(value: Any) -> None:
    spec = DatasetSpec.model_validate({"file": "file_0", "template_arguments": {"kind": value}})
    assert spec.template_arguments["kind"] is value or spec.template_arguments["kind"] == value
    assert type(spec.template_arguments["kind"]) is type(value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"template_arguments": {"messages": 1}}, "given by the rendering itself"),
        ({"template_arguments": {"eos_token": "x"}}, "given by the rendering itself"),
        ({"template_arguments": {"for": 1}}, "given by the rendering itself"),
        ({"template_arguments": {"a b": 1}}, "pattern"),
        ({"template_arguments": {"a": None}}, "template_arguments"),
        ({"template_arguments": {"a": [1]}}, "template_arguments"),
        ({"template_arguments": {"a": 10**30}}, "template_arguments"),
        ({"template_arguments": {f"a{number}": 1 for number in range(17)}}, "at most 16"),
        ({"template": "alpaca", "template_arguments": {"a": 1}}, "only the template chat"),
        ({"template": "plain", "system_prompt": "S"}, "only the template chat"),
        ({"system_prompt": ""}, "at least 1"),
        ({"train_on": "first"}, "'last' or 'all'"),
    ],
)
def test_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DatasetSpec.model_validate({"file": "file_0", **changed})
