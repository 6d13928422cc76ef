"""Services are measured, and what one pass raises keeps no later one from running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from typing import ClassVar

from prometheus_client import REGISTRY
from sqlalchemy.exc import OperationalError

from tests.fixtures.play import Service
from tests.fixtures.process import wait_until
from worker.services.loop import Loop


class Odd:
    name: ClassVar[str] = "odd"

    def __init__(self) -> None:
        self.passes = 0

    def run_once(self) -> None:
        self.passes += 1
        if self.passes == 1:
            raise OperationalError("", {}, Exception("the database is away"))
        if self.passes == 2:
            raise ValueError("ours")


def test_goes_on_and_counts() -> None:
    odd = Odd()
    loop = Loop(odd, 0.001)
    loop.start()
    wait_until(lambda: odd.passes > 3)
    loop.stop()
    loop.join(5.0)
    counted = {
        ended: REGISTRY.get_sample_value("minillm_service_passes_total", {"service": "odd", "ended": ended})
        for ended in ("cut_short", "failed", "done")
    }
    assert counted == {"cut_short": 1, "failed": 1, "done": odd.passes - 2}
    assert REGISTRY.get_sample_value("minillm_service_last_pass_timestamp_seconds", {"service": "odd"})


def test_the_program_shows_what_each_service_does_and_ends_in_order(
    service: Service, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program = start("-m", "worker.services", MINILLM_SERVICES_PORT=str(port))

    def shown() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    for name in ("recover", "announce", "orphans", "retention"):
        passes = f'minillm_service_passes_total{{ended="done",service="{name}"}}'
        wait_until(lambda: passes in shown(), 60)  # noqa: B023
    os.kill(program.pid, signal.SIGTERM)
    assert program.wait(30) == 0
