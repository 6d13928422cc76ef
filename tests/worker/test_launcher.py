"""The environment of the real trainer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worker.launcher import TorchLauncher


def test_cores_are_shared_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("worker.launcher._cores", lambda: 8)
    assert TorchLauncher().environment(2)["OMP_NUM_THREADS"] == "4"
    assert TorchLauncher().environment(100)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in TorchLauncher().environment(2)


def test_devices_and_the_hub_as_the_settings_say() -> None:
    environment = TorchLauncher(gpus="2,3", hub_offline=True).environment(1)
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in TorchLauncher().environment(1)


def test_the_trainer_is_found_from_any_folder(tmp_path: Path) -> None:
    environment = TorchLauncher().environment(1)
    command = [sys.executable, "-c", "import minillm_core.spec"]
    subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": environment["PYTHONPATH"]}, check=True, timeout=60)
