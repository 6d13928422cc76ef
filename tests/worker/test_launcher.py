"""The environment of the real trainer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worker.devices import SlotDevices
from worker.launcher import TorchLauncher


def test_cores_are_shared_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launcher = TorchLauncher(SlotDevices(8, None))
    assert launcher.environment(2)["OMP_NUM_THREADS"] == "4"
    assert launcher.environment(100)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in launcher.environment(2)


def test_devices_and_the_hub_as_the_settings_say() -> None:
    environment = TorchLauncher(SlotDevices(8, ("2", "3")), hub_offline=True).environment(1)
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in TorchLauncher(SlotDevices(8, None)).environment(1)
    assert TorchLauncher(SlotDevices(8, ())).environment(1)["CUDA_VISIBLE_DEVICES"] == ""


def test_the_trainer_is_found_from_any_folder(tmp_path: Path) -> None:
    environment = TorchLauncher(SlotDevices(8, None)).environment(1)
    command = [sys.executable, "-c", "import minillm_core.spec"]
    subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": environment["PYTHONPATH"]}, check=True, timeout=60)
