from __future__ import annotations

import json
import math

import pytest

from minillm_core.evaluate.report import SampleAnswer, build_report, sample_answers_of
from minillm_core.spec import StudentEvent


def report(**changes: object) -> dict[str, object]:
    given: dict[str, object] = {
        "verdict": "The student is that of step 12 of 12.",
        "before": {"rouge_l": 10.0},
        "after": {"rouge_l": 20.0, "lm_loss": math.nan},
        "teacher": {"rouge_l": math.inf},
        "samples": [SampleAnswer("2 + 2?", "4", "5", "4", "4")],
        "steps": 12,
        "train_seconds": 3.5,
        "student_parameters": 100,
        "teacher_parameters": 300,
        "settings": {"seeds": (10, 20), "decoding": "sample"},
        "dataset": {"rows": 40},
        "details": {"after": {"exposure_bias": {"ex_acc_err": [0.0, math.nan]}}},
    }
    return build_report(**(given | changes))  # type: ignore[arg-type]


class TestBuildReport:
    def test_holds_what_the_last_event_carries(self) -> None:
        assert next(iter(report())) == "verdict"
        assert report() == {
            "verdict": "The student is that of step 12 of 12.",
            "before": {"rouge_l": 10.0},
            "after": {"rouge_l": 20.0, "lm_loss": None},
            "teacher": {"rouge_l": None},
            "samples": [{"prompt": "2 + 2?", "reference": "4", "before": "5", "after": "4", "teacher": "4"}],
            "steps": 12,
            "train_seconds": 3.5,
            "student_parameters": 100,
            "teacher_parameters": 300,
            "settings": {"seeds": [10, 20], "decoding": "sample"},
            "dataset": {"rows": 40},
            "details": {"after": {"exposure_bias": {"ex_acc_err": [0.0, None]}}},
        }

    def test_is_json_without_nan_and_fits_into_the_event(self) -> None:
        json.dumps(report(), allow_nan=False)
        event = StudentEvent(
            seq=1,
            time="2026-01-01T00:00:00Z",
            path="student",
            manifest_sha256="0",
            bytes=1,
            parameters=100,
            teacher_parameters=300,
            report=report(),
        )
        assert StudentEvent.model_validate_json(event.model_dump_json()).report == report()

    def test_refuses_what_is_no_json(self) -> None:
        with pytest.raises(TypeError):
            report(settings={"path": object()})


class TestSampleAnswersOf:
    def test_puts_rows_side_by_side(self) -> None:
        found = sample_answers_of(
            ["p1", "p2"], ["r1", "r2"], before=["b1", "b2"], after=["a1", "a2"], teacher=None, count=1
        )
        assert found == [SampleAnswer("p1", "r1", "b1", "a1", None)]

    def test_refuses_answers_of_other_rows(self) -> None:
        with pytest.raises(ValueError):
            sample_answers_of(["p1", "p2"], ["r1", "r2"], before=["b1"], after=None, teacher=None, count=2)
