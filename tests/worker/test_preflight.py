"""Whether a slot is fit for a job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from worker.devices import Gpu
from worker.preflight import Preflight
from worker.process.identity import ProcessIdentity


def _slot(
    path: Path, *, free: int = 100, visible: tuple[str, ...] | None = None, min_free_bytes: int = 0, **more: Any
) -> Preflight:
    found = [Gpu("0", "GPU-a", 100, 100), Gpu("1", "GPU-b", free, 100)]
    return Preflight(runs_dir=path, min_free_bytes=min_free_bytes, visible=visible, probe=lambda: found, **more)


def test_a_free_slot(tmp_path: Path) -> None:
    assert _slot(tmp_path).problem() is None


def test_an_occupied_accelerator_counts_only_where_it_is_ours(tmp_path: Path) -> None:
    assert "accelerator 1 is in use" in str(_slot(tmp_path, free=10).problem())
    assert _slot(tmp_path, free=10, visible=("0",)).problem() is None
    assert _slot(tmp_path, free=10, visible=("GPU-b",)).problem() is not None
    assert _slot(tmp_path, free=10, visible=()).problem() is None, "a slot without any"


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


def test_what_this_machine_lacks(tmp_path: Path) -> None:
    """Else it would take one job after the other, and fail each."""
    now = 0.0
    slot = _slot(tmp_path, clock=lambda: now)
    slot.lacks(tmp_path / "mounted" / "file")
    assert "is not on this machine" in str(slot.problem())
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "file").touch()
    assert slot.problem() is None
    slot.lacks(tmp_path / "gone for good")
    assert slot.problem() is not None
    now = 301.0
    assert slot.problem() is None, "it may have been that file alone"
    slot.lacks(None)
    assert slot.problem() is None


def test_a_folder_that_cannot_be_asked(tmp_path: Path) -> None:
    assert "cannot be asked" in str(_slot(tmp_path / "unmounted").problem())
