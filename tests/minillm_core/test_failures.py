"""What an unexpected exception means: writes that fail, as each library says it, and memory that runs out."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from minillm_core.failures import as_fault
from minillm_core.spec import FailureCategory
from minillm_core.train.checkpoints import disk_fault, is_write_error


def test_torch_says_it_in_its_own_words() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.save({"weights": torch.zeros(1 << 18)}, "/dev/full")
    assert is_write_error(caught.value)
    fault = as_fault(caught.value)
    assert (fault.code, fault.failure().category) == ("write_failed", FailureCategory.INFRASTRUCTURE)


def test_the_free_space_tells_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    assert disk_fault(error, "the checkpoint", tmp_path).code == "write_failed"
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert disk_fault(error, "the checkpoint", tmp_path).code == "disk_full"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk_full"),
        (OSError(errno.EIO, "Input/output error"), "io_error"),
        (OSError(errno.ESTALE, "Stale file handle"), "io_error"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "out_of_memory"),
    ],
)
def test_what_another_time_may_not_have_is_of_the_infrastructure(error: Exception, code: str) -> None:
    failure = as_fault(error).failure()
    assert (failure.code, failure.category, failure.retryable) == (code, FailureCategory.INFRASTRUCTURE, True)


def test_a_slip_of_the_program_is_final() -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory")
    for error in (RuntimeError("shapes do not match"), KeyError("loss"), missing):
        failure = as_fault(error).failure()
        assert (failure.code, failure.category, failure.retryable) == ("internal_error", FailureCategory.SYSTEM, False)


def test_what_is_no_failed_write() -> None:
    for error in (RuntimeError("shapes do not match"), KeyError("loss")):
        assert not is_write_error(error)
