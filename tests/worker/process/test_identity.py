"""Processes that are not mistaken for others."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from worker.process.identity import ProcessIdentity


class TestProcessIdentity:
    def test_a_reused_number_is_not_signalled(self) -> None:
        process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        try:
            identity = ProcessIdentity.of(process.pid)
            ProcessIdentity(process.pid, identity.started - 100).kill()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            identity.kill()
            assert process.wait(5) == -signal.SIGKILL
        finally:
            process.kill()
            process.wait()
