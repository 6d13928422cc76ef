"""The whole service as processes that a fault may hit: Valkey, API, workers, sweepers. What ends is started again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psycopg

from store.bytes.runs import Runs
from store.db import schema
from store.db.database import Database
from worker.embedded.child import start_child
from worker.embedded.valkey import Valkey, prepare_valkey

ROOT = Path(__file__).resolve().parents[2]
TOKEN_VARIABLE = "CHAOS_TOKEN"
POSTGRES = "postgresql://postgres@127.0.0.1:5432/test"
STOP_SECONDS = 60.0


@dataclasses.dataclass
class Crash:
    """A program that ended although nobody had ended it."""

    program: str
    code: int


class Program:
    """One program of the service. :meth:`tick` starts it again, and wakes it, when the time has come."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at: float | None = None
        self._wake_at: float | None = None
        self._expected = False
        self._down = False
        self.crashes: list[Crash] = []

    @property
    def pid(self) -> int | None:
        """The number of the process, or None while there is none."""
        alive = self._process is not None and self._process.poll() is None
        return self._process.pid if alive and self._process is not None else None

    @property
    def undisturbed(self) -> bool:
        return self.pid is not None and self._wake_at is None and not self._expected

    def start(self) -> None:
        """To be called by the main thread alone: the program lives no longer than the thread that started it."""
        with self.log.open("ab") as log:
            self._process = start_child(self._command, environment=self._environment, output=log)
        self._start_at = None
        self._expected = self._down = False

    def tick(self) -> None:
        now = time.monotonic()
        if self._wake_at is not None and now >= self._wake_at:
            self.wake()
        if self._process is not None and self._process.poll() is not None and not self._down:
            if self._start_at is None:
                if not self._expected:
                    self.crashes.append(Crash(self.name, self._process.returncode))
                self._start_at = now + 0.5
            if now >= self._start_at:
                self.start()

    def end(self, number: signal.Signals, down_seconds: float) -> None:
        """Send a signal that ends it; it is started again ``down_seconds`` later."""
        if self.pid is not None:
            self._expected = True
            self._start_at = time.monotonic() + down_seconds
            os.kill(self.pid, number)

    def sleep(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after ``seconds``."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGSTOP)
            self._wake_at = time.monotonic() + seconds

    def wake(self) -> None:
        self._wake_at = None
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM; nothing but :meth:`start` starts it again."""
        self._expected = self._down = True
        self.wake()
        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, seconds: float) -> int | None:
        """Exit code, minus the signal; None where it had to be killed because it did not end in time."""
        if self._process is None:
            return 0
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            return None


@contextlib.contextmanager
def fresh_database(kind: str, data_dir: Path, server: str = POSTGRES) -> Iterator[str]:
    """URL of an empty, migrated database of this run; gone at the end."""
    if kind == "sqlite":
        url = f"sqlite:///{data_dir / 'minillm.db'}"
        _migrate(url)
        yield url
        return
    name = f"minillm_chaos_{os.getpid()}_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True, connect_timeout=5) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        url = server.rsplit("/", 1)[0] + f"/{name}"
        _migrate(url)
        yield url
    finally:
        with psycopg.connect(server, autocommit=True, connect_timeout=5) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _migrate(url: str) -> None:
    database = Database(url)
    schema.upgrade(database.engine)
    database.dispose()


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """``folder`` as a file system of its own of that size; False where mounting is not allowed."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "minillm-chaos", str(folder)]
    mounted = False
    with contextlib.suppress(OSError):
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trainer_environment(folder: Path) -> dict[str, str]:
    """What trainers get besides: one thread each, and compiled parts of their own.

    Those that all programs of a user share are compiled again whenever another installation was the last.
    """
    return {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}


class Stack:
    """Every program of one service, under one data folder and one database."""

    def __init__(
        self,
        *,
        folder: Path,
        data_dir: Path,
        database_url: str,
        workers: int,
        sweepers: int,
        settings: Mapping[str, object],
    ) -> None:
        """``folder`` takes the programs' output; ``settings`` are given to every program as MINILLM_ variables."""
        self.token = secrets.token_hex(12)
        self.data_dir = data_dir
        self.runs_dir = Runs(data_dir).root
        self.database_url = database_url
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.valkey: Valkey = prepare_valkey(data_dir / "valkey")
        (data_dir / "models").mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MINILLM_")}
        given = {
            "data_dir": data_dir,
            "database_url": database_url,
            "broker_url": self.valkey.url,
            "port": self.port,
            **settings,
        }
        environment |= {f"MINILLM_{name.upper()}": str(value) for name, value in given.items()}
        environment |= {"PYTHONPATH": str(ROOT), TOKEN_VARIABLE: self.token, **trainer_environment(folder)}
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)

        def program(name: str, command: list[str]) -> Program:
            return Program(name, command, environment, logs / f"{name}.log")

        module = [sys.executable, "-m"]
        self.broker = program("broker", self.valkey.command)
        self.api = program("api", [*module, "api"])
        # Every second one as Celery's own command starts it, with two slots and events.
        command = [*module, "celery", "-A", "worker.app", "worker", "--concurrency=2", "-E", "--loglevel=INFO"]
        self.workers = [
            program(f"worker-{index}", [*command, f"--hostname={index}@%h"] if index % 2 else [*module, "worker"])
            for index in range(workers)
        ]
        self.sweepers = [program(f"sweeper-{index}", [*module, "worker.services"]) for index in range(sweepers)]

    @property
    def programs(self) -> list[Program]:
        return [self.broker, self.api, *self.workers, *self.sweepers]

    @property
    def crashes(self) -> list[Crash]:
        return [crash for program in self.programs for crash in program.crashes]

    def start(self, seconds: float = 120.0) -> None:
        """Start everything; returns when the API is ready. Raises TimeoutError."""
        for program in self.programs:
            program.start()
        self.until_ready(seconds)

    def until_ready(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > until:
                raise TimeoutError(f"the API was not ready within {seconds:g} s; see {self.api.log}")
            self.tick()
            time.sleep(0.2)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def tick(self) -> None:
        for program in self.programs:
            program.tick()

    def calm(self) -> None:
        """Wake everything that sleeps; what is down is started by :meth:`tick`."""
        for program in self.programs:
            program.wake()

    def stop(self) -> dict[str, int | None]:
        """End everything in order; exit codes by program, None for one that had to be killed."""
        others = [program for program in self.programs if program is not self.broker]
        for program in others:
            program.stop()
        codes = {program.name: program.wait(STOP_SECONDS) for program in others}
        self.broker.stop()
        codes[self.broker.name] = self.broker.wait(STOP_SECONDS)
        if self.valkey.scratch is not None:
            shutil.rmtree(self.valkey.scratch, ignore_errors=True)
        return codes


@contextlib.contextmanager
def running(
    *,
    kind: str,
    workers: int,
    sweepers: int,
    settings: Mapping[str, object],
    disk_megabytes: int | None = None,
    prepare: Callable[[Path], None] = lambda _: None,
) -> Iterator[tuple[Stack, Path, bool]]:
    """A started stack, its working folder, and whether its disk is small; ``prepare`` fills the data folder before.

    The folder is removed at the end, unless the block raises: then its path is said and it stays.
    """
    folder = Path(tempfile.mkdtemp(prefix="minillm-chaos-"))
    data_dir = folder / "data"
    with contextlib.ExitStack() as resources:
        small = False
        if disk_megabytes is not None:
            small = resources.enter_context(small_disk(data_dir, disk_megabytes))
        else:
            data_dir.mkdir()
        prepare(data_dir)
        url = resources.enter_context(fresh_database(kind, data_dir))
        stack = Stack(
            folder=folder, data_dir=data_dir, database_url=url, workers=workers, sweepers=sweepers, settings=settings
        )
        try:
            stack.start()
            yield stack, folder, small
        except BaseException:
            print(f"what is left lies in {folder}", file=sys.stderr)
            with contextlib.suppress(OSError):
                shutil.copytree(data_dir, folder / "evidence", symlinks=True, ignore_dangling_symlinks=True)
            raise
        finally:
            stack.calm()
            stack.stop()
    shutil.rmtree(folder, ignore_errors=True)
