"""A trainer that was killed while it compiled must not stop those after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from minillm_core.train.compile_locks import remove_abandoned_locks

HOLD = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("folder", ["op", "py311_cpu/op"])
def test_a_lock_lives_as_long_as_its_holder(tmp_path: Path, folder: str) -> None:
    build = tmp_path / folder
    build.mkdir(parents=True)
    lock = build / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert remove_abandoned_locks(tmp_path) == []
        assert lock.exists()
    finally:
        holder.kill()
        holder.wait(30)
        assert holder.stdout is not None
        holder.stdout.close()
    assert lock.exists()
    assert remove_abandoned_locks(tmp_path) == [lock]
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    baton.release()


def test_nothing_to_do_is_no_error(tmp_path: Path) -> None:
    assert remove_abandoned_locks(tmp_path / "never made") == []


def test_the_folder_is_the_one_that_torch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "op").mkdir()
    (tmp_path / "op" / "lock").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert remove_abandoned_locks() == [tmp_path / "op" / "lock"]
