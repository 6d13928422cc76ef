"""`minillm up` and its service: ready, stopped by a signal, and gone even when its starter is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

READY_SECONDS = 90.0
GONE_SECONDS = 40.0


@pytest.fixture
def up(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A running `minillm up` on a free port and its data folder."""
    data = tmp_path / "data"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MINILLM_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "minillm", "up", "--data-dir", str(data), "--port", "0", "--json"],
        env=kept,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            yield process, data
        finally:
            process.kill()


def ready(process: subprocess.Popen[bytes], data: Path) -> list[psutil.Process]:
    """Wait until it says where the service answers; every process under `minillm up`."""
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    assert json.loads((data / "service.json").read_text())["url"] == url
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert httpx.get(f"{url}/v1/jobs").json()["data"] == []
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 5  # the service, valkey, API, worker, sweeper
    return family


def all_gone(family: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(family, timeout=GONE_SECONDS)
    return not [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_of_it(up: tuple[subprocess.Popen[bytes], Path], number: signal.Signals) -> None:
    process, data = up
    family = ready(process, data)
    process.send_signal(number)
    assert process.wait(GONE_SECONDS) == 0
    assert all_gone(family)
    assert not (data / "service.json").exists()
    assert process.stdout is not None
    assert process.stdout.read() == b"", "what it logs is on standard error"


def test_nothing_outlives_it_when_it_is_killed(up: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, data = up
    family = ready(process, data)
    process.kill()
    assert all_gone(family)


def test_a_signal_while_it_starts_stops_it_too(up: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, _ = up
    me = psutil.Process(process.pid)
    end = time.monotonic() + READY_SECONDS
    while not (family := me.children(recursive=True)):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(GONE_SECONDS)
    assert all_gone(family)
