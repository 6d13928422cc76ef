"""What an ended trainer means."""

from __future__ import annotations

import pytest

from minillm_core.spec import Failure, FailureCategory
from minillm_core.spec.model_folder import ModelDescription
from store.jobs.endings import Outcome, Student
from worker.attempt.ending import Ending, StopReason, judge, out_of_memory_kills, split_status

STUDENT = Student(b"{}", ModelDescription("LlamaForCausalLM", True, 1, 1, 1, 1, None, None, 1))
SAID = Failure(code="tokenizer_mismatch", category=FailureCategory.USER, message="differs")


@pytest.mark.parametrize(
    ("status", "split"),
    [(None, (None, None)), (0, (0, None)), (75, (75, None)), (-9, (None, 9)), (137, (None, 9)), (255, (255, None))],
)
def test_split_status(status: int | None, split: tuple[int | None, int | None]) -> None:
    assert split_status(status) == split


@pytest.mark.parametrize("status", [0, 75, -9])
@pytest.mark.parametrize("reason", [None, StopReason.CANCEL, StopReason.TIME_LIMIT])
def test_a_verified_student_counts_whatever_came_after(status: int, reason: StopReason | None) -> None:
    assert judge(Ending(status, reason=reason, student=STUDENT)).student is STUDENT


def test_a_failure_after_the_student_counts_more() -> None:
    assert judge(Ending(70, student=STUDENT, said=SAID)).failure == SAID


@pytest.mark.parametrize("reason", [StopReason.CANCEL, StopReason.PAUSE, StopReason.DRAIN])
@pytest.mark.parametrize("status", [None, 0, 75, -15, -9])
def test_an_end_that_was_asked_for_is_no_failure(reason: StopReason, status: int | None) -> None:
    assert judge(Ending(status, reason=reason)).failure is None


def test_a_pause_that_could_not_save_is_a_failure() -> None:
    assert judge(Ending(70, reason=StopReason.PAUSE, said=SAID)).failure == SAID
    assert judge(Ending(70, reason=StopReason.CANCEL, said=SAID)).failure is None


@pytest.mark.parametrize(
    ("ending", "code", "category"),
    [
        (Ending(64, said=SAID), "tokenizer_mismatch", "user"),
        (Ending(64), "invalid_value", "user"),
        (Ending(70), "internal_error", "system"),
        (Ending(1), "internal_error", "system"),
        (Ending(0), "internal_error", "system"),
        (Ending(0, damage="x"), "student_damaged", "infrastructure"),
        (Ending(75), "interrupted", "infrastructure"),
        (Ending(-9), "trainer_killed", "infrastructure"),
        (Ending(-9, out_of_memory=True), "out_of_memory", "infrastructure"),
        (Ending(-11, out_of_memory=True), "trainer_killed", "infrastructure"),
        (Ending(-9, lease_overdue=True), "worker_lost", "infrastructure"),
        (Ending(-9, reason=StopReason.STALLED), "stalled", "infrastructure"),
        (Ending(75, reason=StopReason.DISK_FULL), "disk_full", "infrastructure"),
        (Ending(1, disk_full=True), "disk_full", "infrastructure"),
        (Ending(64, disk_full=True), "invalid_value", "user"),
        (Ending(75, reason=StopReason.TIME_LIMIT), "time_limit", "user"),
    ],
)
def test_failures(ending: Ending, code: str, category: str) -> None:
    outcome: Outcome = judge(ending)
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.category) == (code, category)
    assert outcome.failure.retryable == (category == "infrastructure")


def test_the_last_line_of_the_log_explains_an_unknown_exit_code() -> None:
    failure = judge(Ending(3, log=b"a\nImportError: no module\n")).failure
    assert failure is not None and failure.message.endswith("exit code 3: ImportError: no module")


def test_the_kernel_counts_its_kills() -> None:
    assert out_of_memory_kills() >= 0
