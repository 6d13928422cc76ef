"""The real trainer under faults: one rank of two is told to stop, and the disk fills while it saves (27, 28)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from minillm_core.manifests import verify_folder
from minillm_core.spec import ExitCode
from tests.minillm_core.tiny_runs import ROOT, events, of_type, run_program, write_run

PATIENCE = 240.0


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    programs: list[subprocess.Popen[bytes]] = []
    yield programs
    for program in programs:
        for process in [*psutil.Process(program.pid).children(recursive=True)] if program.poll() is None else []:
            process.kill()
        program.kill()
        program.wait(10)


def start(folder: Path, programs: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    with (folder / "output.log").open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, "-m", "minillm_core", str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    programs.append(program)
    return program


def until_event(folder: Path, kind: str, program: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while not of_type(events_so_far(folder), kind):
        assert program.poll() is None, (folder / "output.log").read_text()[-3000:]
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def events_so_far(folder: Path) -> list[dict[str, object]]:
    path = folder / "events.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def test_a_signal_to_one_rank_of_two_stops_both_with_a_checkpoint(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    folder = write_run(
        tmp_path / "run",
        method={"type": "sft"},
        training={"max_steps": 100_000, "save_every": 100_000, "eval_every": 100_000},
        resources={"gpus": 2},
    )
    launcher = start(folder, started)
    until_event(folder, "metrics", launcher)
    ranks = {process.environ().get("RANK"): process for process in psutil.Process(launcher.pid).children()}
    ranks["1"].send_signal(signal.SIGTERM)
    assert launcher.wait(PATIENCE) == ExitCode.STOPPED, (folder / "output.log").read_text()[-3000:]
    assert not any(process.is_running() for process in ranks.values())
    (saved,) = of_type(events(folder), "checkpoint")
    assert verify_folder(folder / saved["path"]).data["world"] == 2
    last = of_type(events(folder), "metrics")[-1]["step"]
    assert saved["step"] == last, "both ranks stopped after the same step"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "minillm-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, program: subprocess.Popen[bytes]) -> int:
    """Leave room for some lines of events and no checkpoint until the program ends, whatever it removes; its exit code.

    It stands still while the room is measured and taken.
    """
    process = psutil.Process(program.pid)
    until = time.monotonic() + PATIENCE
    with (disk / "ballast").open("wb") as ballast:
        while program.poll() is None:
            assert time.monotonic() < until, "waited in vain"
            program.send_signal(signal.SIGSTOP)
            while program.poll() is None and process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                time.sleep(0.001)
            spare = shutil.disk_usage(disk).free - (256 << 10)
            if spare > 0:
                os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, spare)
            program.send_signal(signal.SIGCONT)
            time.sleep(0.05)
    return program.returncode


def test_a_disk_that_fills_while_it_saves_leaves_nothing_half_written(
    tmp_path: Path, small_disk: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    steps = {"max_steps": 120, "save_every": 2, "eval_every": 120}
    folder = write_run(small_disk / "run", method={"type": "sft"}, training=steps)
    program = start(folder, started)
    until_event(folder, "checkpoint", program)
    assert fill(small_disk, program) == ExitCode.INTERNAL_ERROR, (folder / "output.log").read_text()[-3000:]
    said = of_type(events_so_far(folder), "failure")[-1]["failure"]
    assert isinstance(said, dict)
    assert (said["code"], said["category"], said["retryable"]) == ("disk_full", "infrastructure", True)
    shown = [path for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")]
    assert shown and all(verify_folder(path) for path in shown)
    assert len(shown) == len(list((folder / "checkpoints").iterdir())), "its room is free again"
    # With room again it goes on from there, and ends as an undisturbed run does.
    (small_disk / "ballast").unlink()
    code, found = run_program(folder, timeout=PATIENCE)
    assert code == ExitCode.DONE
    assert [event for event in of_type(found, "message") if event["code"] == "resuming"]
    reference = write_run(tmp_path / "reference", method={"type": "sft"}, training=steps)
    assert run_program(reference, timeout=PATIENCE)[0] == ExitCode.DONE
    weights = "student/model.safetensors"
    assert (folder / weights).read_bytes() == (reference / weights).read_bytes()
