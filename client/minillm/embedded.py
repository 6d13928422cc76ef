"""Starts the service as a subprocess, where it is installed: this package imports none of its own."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from minillm.errors import MinillmError

STOP_SECONDS = 60.0
"""How long the service may take to stop its processes before it is killed (they end with it)."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def require(module: str, command: str, extras: str) -> None:
    """Raises MinillmError that says what to install where a command's programs are not beside this package."""
    if importlib.util.find_spec(module) is None:
        raise MinillmError(
            f"`minillm {command}` needs the service's own packages, which are not installed here: "
            f"in a checkout of the service, make setup or pip install '.[{extras}]'"
        )


def die_with_parent() -> None:
    """Linux prctl(2), to be called in a child before exec: SIGKILL once the parent is gone."""
    prctl = getattr(_LIBC, "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class EmbeddedService:
    """`python -m worker.embedded` and its end of the lifeline.

    The service holds the read end of a pipe whose write end only this process has, so that it stops everything it
    started even when this process is killed. It has a session of its own: a Ctrl-C in the terminal reaches it once,
    through `stop` or `signal`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        environment: Mapping[str, str],
        log: Path | None = None,
        to_stderr: bool = False,
    ) -> None:
        self.data_dir = data_dir
        self.log = log
        self._to_stderr = to_stderr
        self._environment = dict(environment)
        self._command = [sys.executable, "-m", "worker.embedded", "--data-dir", str(data_dir)]
        if port is not None:
            self._command += ["--port", str(port)]
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None

    def start(self) -> None:
        """Start the process. Its output goes to `log`, or to this process's own where there is none (with `to_stderr`
        all of it to the standard error).

        Raises MinillmError where the data folder cannot be made.
        """
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MinillmError(f"the data folder {self.data_dir} cannot be made: {error.strerror}") from error
        read_end, self._lifeline = os.pipe()
        try:
            output = self.log.open("ab") if self.log is not None else None
            try:
                self._process = subprocess.Popen(
                    [*self._command, "--lifeline-fd", str(read_end)],
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr if output is None and self._to_stderr else output,
                    stderr=subprocess.STDOUT if output is not None else None,
                    env=self._environment,
                    pass_fds=[read_end],
                    start_new_session=True,
                )
            finally:
                if output is not None:
                    output.close()
        finally:
            os.close(read_end)

    def ready(self, *, timeout: float = 120.0) -> str:
        """Wait until the service answers `/readyz` and return its address.

        Raises MinillmError when it ends first or is not ready within `timeout` seconds.
        """
        assert self._process is not None
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise MinillmError(
                    f"the service ended with {self._process.returncode} before it was ready{self._tail()}"
                )
            url = self._announced()
            if url is not None:
                try:
                    if httpx.get(f"{url}/readyz", timeout=5.0).is_success:
                        return url
                except httpx.TransportError:
                    pass
            time.sleep(0.1)
        raise MinillmError(f"the service was not ready after {timeout:g} seconds{self._tail()}")

    def wait(self) -> int:
        """The exit status once the service has ended."""
        assert self._process is not None
        return self._process.wait()

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def stop(self, *, at_once: bool = False) -> None:
        """End the service and all it started; bounded in time, and safe to call at any moment.

        Jobs that run are saved and go back to the queue; with `at_once` they are not waited for.
        """
        process = self._process
        try:
            if at_once:
                self._drop_lifeline()
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        finally:
            self._drop_lifeline()

    def _drop_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def _announced(self) -> str | None:
        """The address in service.json, if it is this service's and not that of an earlier one."""
        assert self._process is not None
        try:
            said: dict[str, Any] = json.loads((self.data_dir / "service.json").read_text())
            return str(said["url"]).rstrip("/") if said["pid"] == self._process.pid else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _tail(self) -> str:
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 2000))
            return f"; the end of {self.log}:\n{file.read().decode(errors='replace')}"


def forward_signals(service: EmbeddedService, numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)) -> None:
    """Pass signals on to the service instead of ending this process before it."""

    def send(number: int, _: Any) -> None:
        # The service knows one way to stop; a second Ctrl-C must not interrupt it.
        service.signal(signal.SIGTERM)

    for number in numbers:
        signal.signal(number, send)


def run_subprocess(
    command: list[str],
    *,
    given: str | None = None,
    timeout: float,
) -> str:
    """Run a command that ends with this process, and return its standard output.

    Raises MinillmError with the end of its standard error where it fails or takes more than `timeout` seconds.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    try:
        output, errors = process.communicate(given, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise MinillmError(f"{' '.join(command[1:4])} took more than {timeout:g} seconds") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise MinillmError(f"{' '.join(command[1:4])} ended with {process.returncode}:\n{errors[-2000:]}")
    return output
