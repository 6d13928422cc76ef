"""Why a run ends badly, as exceptions that carry what the user is told.

Whoever finds the fault knows its code and the field of the spec that caused it, so both travel
with the exception to the one place that writes the failure event and picks the exit code.
"""

from __future__ import annotations

from typing import ClassVar

from minillm_core.spec import ExitCode, Failure, FailureCategory


class RunError(Exception):
    """A run that cannot go on.

    ``code`` is a stable snake_case name, ``param`` a JSON pointer into the job's spec,
    ``retryable`` whether the same spec may succeed another time. Raise one of the subclasses.
    """

    category: ClassVar[FailureCategory]
    exit_code: ClassVar[ExitCode]

    def __init__(self, code: str, message: str, *, param: str | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def failure(self, attempt: int | None = None) -> Failure:
        """The same as the record that the service keeps."""
        return Failure(
            code=self.code,
            category=self.category,
            message=self.message,
            param=self.param,
            retryable=self.retryable,
            attempt=attempt,
        )


class UserError(RunError):
    """The request cannot be fulfilled as it stands: another spec, file or model is needed."""

    category = FailureCategory.USER
    exit_code = ExitCode.USER_ERROR


class SystemFault(RunError):
    """The program or its machine failed: the request was good.

    One that another time or another machine may not have (``retryable``: a full disk, memory that ran
    out) is of the infrastructure, and the service tries it again; any other is a fault of the program.
    """

    category = FailureCategory.SYSTEM
    exit_code = ExitCode.INTERNAL_ERROR

    def failure(self, attempt: int | None = None) -> Failure:
        failure = super().failure(attempt)
        return failure.model_copy(update={"category": FailureCategory.INFRASTRUCTURE}) if self.retryable else failure
