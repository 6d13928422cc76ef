"""An error carries what the user is told."""

from __future__ import annotations

from minillm_core.errors import SystemFault, UserError
from minillm_core.spec import ExitCode, FailureCategory


def test_failure_record() -> None:
    error = UserError("dataset_invalid", "line 3: not JSON", param="/dataset/file")
    failure = error.failure(attempt=2)
    assert (failure.code, failure.category, failure.message) == (
        "dataset_invalid",
        FailureCategory.USER,
        "line 3: not JSON",
    )
    assert (failure.param, failure.retryable, failure.attempt) == ("/dataset/file", False, 2)
    assert error.exit_code is ExitCode.USER_ERROR and str(error) == "dataset_invalid: line 3: not JSON"


def test_our_own_fault() -> None:
    fault = SystemFault("checkpoint_unreadable", "written by 2 ranks")
    assert fault.failure().category is FailureCategory.SYSTEM and not fault.failure().retryable
    assert fault.exit_code is ExitCode.INTERNAL_ERROR


def test_what_may_go_well_elsewhere_is_of_the_infrastructure() -> None:
    fault = SystemFault("disk_full", "no space left", retryable=True)
    assert fault.failure(3).category is FailureCategory.INFRASTRUCTURE and fault.failure().retryable
    assert (fault.failure(3).attempt, fault.exit_code) == (3, ExitCode.INTERNAL_ERROR)
