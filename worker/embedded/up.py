"""``python -m worker.embedded``: the whole service by one command, all its data in one folder.

Starts Valkey, brings the database to the newest schema, then starts the API, a worker and the sweeper, each in a
session of its own, and starts again what crashes. One line says where the service answers; ``service.json`` in the
data folder says the same with the pid of this process.

Everything ends with this process: in order on SIGINT, SIGTERM or the end of the lifeline (a pipe whose other end
the starter holds), at once on a second signal, and by the kernel's hand where it is killed itself.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from store.db import schema
from store.db.database import Database
from store.program import begin
from store.settings import Settings
from worker.embedded.child import start_child
from worker.embedded.valkey import Valkey, ValkeyMissing, prepare_valkey

READY_SECONDS = 90.0
BROKER_SECONDS = 15.0
ORPHANED_GRACE_SECONDS = 5.0
"""Time to stop once the starter is gone: nobody waits for a checkpoint any more."""
LONGEST_BACKOFF_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A child that ran so long is started again without a wait when it crashes."""
LOG_LIMIT_BYTES = 16 << 20
POLL_SECONDS = 0.2


class CannotStart(Exception):
    """The service cannot start; the message says why and what to do."""


class Child:
    """One program of the service, started again with a growing wait when it ends."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._crashes = 0

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self._process = start_child(self._command, environment=self._environment, output=log)
        self._started_at = time.monotonic()

    @property
    def ended(self) -> int | None:
        """How it ended, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def keep_alive(self) -> None:
        if self.ended is None:
            return
        if time.monotonic() - self._started_at > STEADY_SECONDS:
            self._crashes = 0
        if time.monotonic() - self._started_at < min(LONGEST_BACKOFF_SECONDS, 2.0**self._crashes - 1):
            return
        say(f"{self.name} ended with {self.ended} and is started again; see {self.log}")
        self._crashes += 1
        self.start()

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it and what it left in its session."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def last_words(self) -> str:
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 2000))
            return log.read().decode(errors="replace").strip()
        return ""


def say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)


class EmbeddedService:
    """The children of this process; used once, by the main thread, which the children live no longer than."""

    def __init__(self, settings: Settings, *, lifeline_fd: int | None = None) -> None:
        self.settings = settings
        self._lifeline_fd = lifeline_fd
        self._children: list[Child] = []
        self._valkey: Valkey | None = None
        self._wake_read, wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    @property
    def url(self) -> str:
        host = self.settings.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{self.settings.port}" if ":" in host else f"http://{host}:{self.settings.port}"

    def run(self) -> None:
        """Start, serve until told to stop, and stop. Raises CannotStart, with nothing left running."""
        said = self.settings.data_dir / "service.json"
        grace = 0.0
        try:
            if self._start():
                self._announce(said)
                say(f"MiniLLM is ready at {self.url} (data in {self.settings.data_dir}; Ctrl-C stops it)")
                while (stop := self._pause(POLL_SECONDS)) is None:
                    for child in self._children:
                        child.keep_alive()
                grace = stop
        finally:
            said.unlink(missing_ok=True)
            self._stop(grace)

    def _start(self) -> bool:
        """Bring everything up; False where it was told to stop meanwhile."""
        settings = self.settings
        logs = settings.data_dir / "logs"
        try:
            self._valkey = prepare_valkey(settings.data_dir / "valkey")
        except ValkeyMissing as error:
            raise CannotStart(str(error)) from error
        settings.broker_url = self._valkey.url
        environment = {
            **os.environ,
            "MINILLM_DATA_DIR": str(settings.data_dir),
            "MINILLM_DATABASE_URL": settings.database_url,
            "MINILLM_BROKER_URL": settings.broker_url,
            "MINILLM_HOST": settings.host,
            "MINILLM_PORT": str(settings.port),
        }
        broker = self._add(Child("valkey", self._valkey.command, environment, logs / "valkey.log"))
        database = Database(settings.database_url)
        schema.upgrade(database.engine)
        database.dispose()
        if not self._wait_for(broker, self._valkey.answers, BROKER_SECONDS):
            return False
        api = None
        for name, module in (("api", "api"), ("worker", "worker"), ("sweeper", "worker.services")):
            child = self._add(Child(name, [sys.executable, "-m", module], environment, logs / f"{name}.log"))
            api = api or child
        assert api is not None
        return self._wait_for(api, self._answers, READY_SECONDS)

    def _add(self, child: Child) -> Child:
        self._children.append(child)
        child.start()
        return child

    def _wait_for(self, child: Child, ready: Callable[[], bool], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not ready():
            if child.ended is not None or time.monotonic() > until:
                how = "did not answer in time" if child.ended is None else f"ended with {child.ended}"
                raise CannotStart(f"{child.name} {how}; the end of {child.log}:\n{child.last_words()}")
            if self._pause(POLL_SECONDS / 4) is not None:
                return False
        return True

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _announce(self, path: Path) -> None:
        aside = path.with_suffix(".json.new")
        aside.write_text(json.dumps({"url": self.url, "pid": os.getpid()}) + "\n")
        aside.replace(path)

    def _pause(self, seconds: float) -> float | None:
        """Wait a little; the grace for stopping once there is a reason to stop."""
        fds = [self._wake_read] if self._lifeline_fd is None else [self._wake_read, self._lifeline_fd]
        readable, _, _ = select.select(fds, [], [], seconds)
        if self._lifeline_fd in readable:
            return ORPHANED_GRACE_SECONDS
        if self._wake_read in readable and {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} & set(
            os.read(self._wake_read, 4096)
        ):
            return self.settings.stop_grace_seconds + ORPHANED_GRACE_SECONDS
        return None

    def _stop(self, grace: float) -> None:
        """Let the API, the worker and the sweeper end within `grace`, then end all; at once on a further signal."""
        ordered = [child for child in self._children if child.name != "valkey"]
        if grace > 0 and any(child.ended is None for child in ordered):
            say("stopping: a running job is saved at its next step and goes back to the queue (again: at once)")
        for child in ordered:
            child.signal(signal.SIGTERM)
        until = time.monotonic() + grace
        while any(child.ended is None for child in ordered) and time.monotonic() < until:
            asked = self._pause(POLL_SECONDS)
            if asked == ORPHANED_GRACE_SECONDS:
                until = min(until, time.monotonic() + ORPHANED_GRACE_SECONDS)
                self._lifeline_fd = None
            elif asked is not None:
                break
        # The worker first: its trainer dies with it.
        for child in reversed(self._children):
            child.kill()
        if self._valkey is not None and self._valkey.scratch is not None:
            shutil.rmtree(self._valkey.scratch, ignore_errors=True)


def free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises CannotStart where it is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(f"port {port} of {host} is not free ({error.strerror}): choose another --port") from error
        return int(probe.getsockname()[1])


def lock_folder(data_dir: Path) -> IO[str]:
    """Hold the data folder for this process: two services would share a database and a broker's file.

    Raises CannotStart where another one runs.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = (data_dir / "embedded.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        where = ""
        with contextlib.suppress(OSError, ValueError, KeyError):
            where = f" at {json.loads((data_dir / 'service.json').read_text())['url']}"
        raise CannotStart(f"a service already runs on {data_dir}{where}") from error
    return lock


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.embedded", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder of everything; MINILLM_DATA_DIR or ./data when left out")
    parser.add_argument("--port", type=int, help="port of the API, 0 for a free one; MINILLM_PORT when left out")
    parser.add_argument("--lifeline-fd", type=int, help="read end of a pipe: the service stops at its end of file")
    options = parser.parse_args()
    given = {name: value for name in ("data_dir", "port") if (value := getattr(options, name)) is not None}
    settings = begin("embedded", **given)
    try:
        with lock_folder(settings.data_dir):
            settings.port = free_port(settings.host, settings.port)
            EmbeddedService(settings, lifeline_fd=options.lifeline_fd).run()
    except CannotStart as error:
        print(f"The service does not start: {error}", file=sys.stderr)
        return 1
    return 0
