"""The whole service by one command, and nothing left of it however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.fixtures.process import wait_until
from worker.embedded.up import CannotStart, free_port, lock_folder
from worker.embedded.valkey import prepare_valkey

ROOT = Path(__file__).parents[3]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    services: list[subprocess.Popen[str]] = []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MINILLM_")}

    def starter(*arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
        service = subprocess.Popen(
            [sys.executable, "-m", "worker.embedded", "--data-dir", str(tmp_path / "data"), "--port", "0", *arguments],
            env={**environment, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        services.append(service)
        return service

    yield starter
    for service in services:
        service.kill()
        service.wait()
        assert service.stdout is not None
        service.stdout.close()
    wait_until(lambda: not _left(tmp_path), 10)


def _left(folder: Path) -> list[psutil.Process]:
    """Living processes that work in or below `folder`; by its environment Valkey is not found, it overwrites that."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _ready(service: subprocess.Popen[str], data_dir: Path) -> str:
    assert service.stdout is not None
    line = service.stdout.readline()
    assert "ready at http://" in line, line + service.stdout.read()
    said = json.loads((data_dir / "service.json").read_text())
    assert said["pid"] == service.pid and said["url"] in line
    return str(said["url"])


def test_serves_runs_what_crashed_again_and_stops_on_sigint(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    service = start()
    url = _ready(service, tmp_path / "data")
    with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
        assert answer.status == 200
    assert (tmp_path / "data" / "valkey").stat().st_mode & 0o777 == 0o700

    second = start()
    assert second.wait(20) == 1
    assert second.stdout is not None and f"already runs on {tmp_path / 'data'} at {url}" in second.stdout.read()

    # Valkey's socket file is left behind by its death and must not stand in the way of the next one.
    (valkey,) = [process for process in _left(tmp_path) if process.name() == "valkey-server"]
    valkey.kill()
    server = prepare_valkey(tmp_path / "data" / "valkey")
    wait_until(server.answers)

    service.send_signal(signal.SIGINT)
    assert service.wait(20) == 0
    assert _left(tmp_path) == []
    assert not (tmp_path / "data" / "service.json").exists()


def test_leaves_nothing_when_it_is_killed(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    service = start()
    _ready(service, tmp_path / "data")
    assert len(_left(tmp_path)) >= 6
    service.kill()
    wait_until(lambda: not _left(tmp_path), 15)


def test_leaves_nothing_when_its_starter_is_gone(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    start("--lifeline-fd", str(read_end), pass_fds=(read_end,))
    os.close(read_end)
    try:
        wait_until(prepare_valkey(tmp_path / "data" / "valkey").answers, 30)
    finally:
        os.close(write_end)
    wait_until(lambda: not _left(tmp_path), 15)


class TestFolder:
    def test_a_second_lock_is_refused(self, tmp_path: Path) -> None:
        with lock_folder(tmp_path), pytest.raises(CannotStart, match="already runs"):
            lock_folder(tmp_path)
        lock_folder(tmp_path).close()

    def test_a_taken_port_is_named(self) -> None:
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(CannotStart, match="choose another --port"):
                free_port("127.0.0.1", taken.getsockname()[1])
        assert free_port("127.0.0.1", 0) > 0

    def test_a_long_path_gets_a_short_socket(self, tmp_path: Path) -> None:
        valkey = prepare_valkey(tmp_path / ("x" * 100))
        assert valkey.scratch is not None and len(str(valkey.socket)) < 100
        valkey.scratch.rmdir()
        assert prepare_valkey(tmp_path / "a b").scratch is not None
