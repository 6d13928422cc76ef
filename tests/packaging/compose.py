"""docker-compose.yml as Compose reads it, and its services run as local processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from worker.embedded.child import start_child

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"

# ${NAME}, ${NAME:-default}, ${NAME:?message}; a plain $NAME is not used in this file, $$ is a dollar.
VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


class MissingVariable(Exception):
    """A variable that the file requires is not set."""


def interpolate(text: str, environment: Mapping[str, str]) -> str:
    """``text`` with its variables filled in. Raises MissingVariable."""

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        value = environment.get(match["name"], "")
        if not value and match["kind"] == "?":
            raise MissingVariable(f"{match['name']}: {match['rest']}")
        return value or (match["rest"] if match["kind"] == "-" else "")

    return VARIABLE.sub(fill, text)


def load(environment: Mapping[str, str]) -> dict[str, Any]:
    """The file with anchors and variables resolved. Raises MissingVariable."""

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(item) for item in node]
        return interpolate(node, environment) if isinstance(node, str) else node

    document: dict[str, Any] = walk(yaml.safe_load(COMPOSE_FILE.read_text()))
    return document


def environment_of(service: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """What a service's container gets; a variable without a value is passed on where it is set."""
    given: dict[str, str] = {}
    for name, value in service.get("environment", {}).items():
        if value is not None:
            given[name] = str(value)
        elif name in environment:
            given[name] = environment[name]
    return given


def seconds(text: str) -> float:
    """Compose's durations, such as `90s` or `3m`."""
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text)
    assert match is not None and text, text
    return 60.0 * int(match[1] or 0) + int(match[2] or 0)


class LocalStack:
    """The services of the file that run our own code, each as a process of this machine.

    ``here`` maps pieces of text (host names, folders, addresses) to what takes their place on this machine;
    services that are not ours (``given``) run already.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        *,
        given: set[str],
        here: Mapping[str, str],
        environment: Mapping[str, str],
        folder: Path,
    ) -> None:
        self.services: dict[str, Any] = {
            name: service for name, service in document["services"].items() if name not in given
        }
        self._here = dict(here)
        self._given = given
        self._environment = dict(environment)
        self._folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def place(self, text: str) -> str:
        """``text`` with everything in it that is elsewhere replaced, in one pass."""
        longest_first = sorted(self._here, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), lambda match: self._here[match[0]], text)

    def environment(self, name: str) -> dict[str, str]:
        """The service's own variables on top of nothing but what a shell has."""
        inherited = ("PATH", "HOME", "LANG", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", "LD_LIBRARY_PATH")
        shell = {key: os.environ[key] for key in inherited if key in os.environ}
        own = environment_of(self.services[name], self._environment)
        return shell | {key: self.place(value) for key, value in own.items()}

    def start(self, patience: float) -> None:
        """Start every service once what it depends on is as it must be. Raises AssertionError, TimeoutError."""
        waiting = dict(self.services)
        end = time.monotonic() + patience
        while waiting:
            for name, service in list(waiting.items()):
                if all(self._met(*item) for item in service.get("depends_on", {}).items()):
                    log = self._folder / f"{name}.log"
                    with log.open("wb") as output:
                        self.processes[name] = start_child(
                            self._command(service["command"]), environment=self.environment(name), output=output
                        )
                    del waiting[name]
            if time.monotonic() > end:
                raise TimeoutError(f"{', '.join(waiting)} did not start\n{self.logs()}")
            time.sleep(0.1)

    def _command(self, command: list[str]) -> list[str]:
        assert command[0] == "python", command
        return [sys.executable, *map(self.place, command[1:])]

    def _met(self, name: str, how: Mapping[str, str]) -> bool:
        if name in self._given:
            return True
        process = self.processes.get(name)
        if process is None:
            return False
        if how["condition"] == "service_completed_successfully":
            code = process.poll()
            assert code in (None, 0), f"{name} ended with {code}\n{self.logs()}"
            return code == 0
        return how["condition"] == "service_started" or self.healthy(name)

    def healthy(self, name: str) -> bool:
        """Whether the service's own health check passes now."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD", kind
        done = subprocess.run(
            self._command(command), env=self.environment(name), capture_output=True, timeout=60, check=False
        )
        return done.returncode == 0

    def wait_until_healthy(self, names: set[str], patience: float) -> None:
        end = time.monotonic() + patience
        for name in sorted(names):
            while not self.healthy(name):
                assert self.processes[name].poll() is None, f"{name} has ended\n{self.logs()}"
                assert time.monotonic() < end, f"{name} is not healthy\n{self.logs()}"
                time.sleep(0.5)

    def stop(self) -> dict[str, int]:
        """SIGTERM to all that run, as `docker compose stop` sends it; how each ended, minus the signal."""
        running = {name: process for name, process in self.processes.items() if process.poll() is None}
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for name, process in running.items():
            process.wait(seconds(self.services[name].get("stop_grace_period", "10s")) + 20)
        return {name: process.returncode for name, process in running.items()}

    def logs(self) -> str:
        parts = [f"--- {path.stem}\n{path.read_text(errors='replace')[-3000:]}" for path in self._folder.glob("*.log")]
        return "\n".join(parts)

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Ends every process that was started, whatever happens inside."""
        try:
            yield
        finally:
            for process in self.processes.values():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)
