"""Whether the place to train is free."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from worker.process_group import ProcessIdentity
from worker.slot import Gpu, Slot


def _slot(path: Path, *, free: int = 100, gpus: str | None = None, min_free_bytes: int = 0) -> Slot:
    found = [Gpu("0", "GPU-a", 100, 100), Gpu("1", "GPU-b", free, 100)]
    return Slot(runs_dir=path, min_free_bytes=min_free_bytes, gpus=gpus, probe=lambda: found)


def test_a_free_slot(tmp_path: Path) -> None:
    assert _slot(tmp_path).problem() is None


def test_an_occupied_accelerator_counts_only_where_it_is_ours(tmp_path: Path) -> None:
    assert "accelerator 1 is in use" in str(_slot(tmp_path, free=10).problem())
    assert _slot(tmp_path, free=10, gpus="0").problem() is None
    assert _slot(tmp_path, free=10, gpus="GPU-b").problem() is not None


def test_an_almost_full_disk(tmp_path: Path) -> None:
    assert "the disk is almost full" in str(_slot(tmp_path, min_free_bytes=1 << 60).problem())


def test_what_an_attempt_left_alive(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    slot = _slot(tmp_path)
    try:
        slot.left_by([ProcessIdentity.of(process.pid)])
        assert str(process.pid) in str(slot.problem())
    finally:
        process.kill()
        process.wait()
    assert slot.problem() is None


def test_a_folder_that_cannot_be_asked(tmp_path: Path) -> None:
    assert "cannot be asked" in str(_slot(tmp_path / "unmounted").problem())
