"""What may happen to a service, as data: each fault is a function that does it and says whether it could."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import redis

from benchmarks.chaos.processes import Trainer, Watch
from benchmarks.chaos.stack import POSTGRES, Program, Stack


@dataclass
class Scene:
    """What the faults act on, and what of it the judgement must know."""

    stack: Stack
    watch: Watch
    random: random.Random
    small_disk: bool
    lease_seconds: float
    corrupted: set[Path] = field(default_factory=set)
    """Checkpoints that were damaged on purpose."""
    asleep: dict[int, float] = field(default_factory=dict)
    """Trainers and processes of pools that are stopped: pid -> when to wake them."""
    threads: list[threading.Thread] = field(default_factory=list)
    """What still holds a lock or fills the disk."""

    def later(self, action: Callable[[], None]) -> bool:
        """Run an action of seconds aside; False where one still runs."""
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        if self.threads:
            return False
        thread = threading.Thread(target=action, daemon=True)
        thread.start()
        self.threads.append(thread)
        return True

    def tick(self) -> None:
        now = time.monotonic()
        for pid in [pid for pid, when in self.asleep.items() if when <= now]:
            del self.asleep[pid]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def calm(self) -> None:
        """End every fault that lasts."""
        for pid in self.asleep:
            self.asleep[pid] = 0.0
        self.tick()
        for thread in self.threads:
            thread.join(60)
        self.stack.calm()


Fault = Callable[[Scene], bool]


def _down(scene: Scene) -> float:
    return scene.random.uniform(0.2, 4.0)


def _kill(scene: Scene, programs: list[Program], number: signal.Signals = signal.SIGKILL) -> bool:
    candidates = [program for program in programs if program.undisturbed]
    if not candidates:
        return False
    scene.random.choice(candidates).end(number, _down(scene))
    return True


def _sleep(scene: Scene, programs: list[Program], longest: float) -> bool:
    candidates = [program for program in programs if program.undisturbed]
    if not candidates:
        return False
    scene.random.choice(candidates).sleep(scene.random.uniform(0.5, longest))
    return True


def _trainer(scene: Scene, *, guardian: bool = False) -> Trainer | None:
    living = [trainer for trainer in scene.watch.living() if trainer.guardian is guardian]
    return scene.random.choice(living) if living else None


def kill_worker(scene: Scene) -> bool:
    return _kill(scene, scene.stack.workers)


def deploy_worker(scene: Scene) -> bool:
    """SIGTERM: it hands its job back and ends."""
    return _kill(scene, scene.stack.workers, signal.SIGTERM)


def stop_worker(scene: Scene) -> bool:
    """SIGSTOP, half the time for longer than a lease."""
    return _sleep(scene, scene.stack.workers, 2 * scene.lease_seconds)


def _slot(scene: Scene) -> int | None:
    """A process of the pool of some worker."""
    found = [child.pid for program in scene.stack.workers if program.undisturbed for child in _children(program.pid)]
    return scene.random.choice(found) if found else None


def _children(pid: int | None) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [child for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    return []


def kill_slot(scene: Scene) -> bool:
    """SIGKILL to a process of the pool, as the kernel does where memory runs out."""
    return _send(_slot(scene), signal.SIGKILL)


def stop_slot(scene: Scene) -> bool:
    """SIGSTOP to a process of the pool, half the time for longer than a lease."""
    pid = _slot(scene)
    if pid is None or not _send(pid, signal.SIGSTOP):
        return False
    scene.asleep[pid] = time.monotonic() + scene.random.uniform(0.5, 2 * scene.lease_seconds)
    return True


def kill_trainer(scene: Scene) -> bool:
    return _signal(_trainer(scene), signal.SIGKILL)


def kill_guardian(scene: Scene) -> bool:
    return _signal(_trainer(scene, guardian=True), signal.SIGKILL)


def stop_trainer(scene: Scene) -> bool:
    trainer = _trainer(scene)
    if trainer is None or not _signal(trainer, signal.SIGSTOP):
        return False
    scene.asleep[trainer.pid] = time.monotonic() + scene.random.uniform(1.0, 2 * scene.lease_seconds)
    return True


def kill_api(scene: Scene) -> bool:
    return _kill(scene, [scene.stack.api])


def stop_api(scene: Scene) -> bool:
    return _sleep(scene, [scene.stack.api], 8.0)


def kill_sweeper(scene: Scene) -> bool:
    return _kill(scene, scene.stack.sweepers)


def stop_sweeper(scene: Scene) -> bool:
    return _sleep(scene, scene.stack.sweepers, 2 * scene.lease_seconds)


def kill_broker(scene: Scene) -> bool:
    return _kill(scene, [scene.stack.broker])


def stop_broker(scene: Scene) -> bool:
    return _sleep(scene, [scene.stack.broker], 8.0)


def flush_broker(scene: Scene) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(scene.stack.valkey.socket), socket_timeout=1) as client:
            client.flushall()
    except redis.RedisError:
        return False
    return True


def cut_database(scene: Scene) -> bool:
    """PostgreSQL ends every session of the service, or one locks the jobs; SQLite: another holds the write lock."""
    seconds = scene.random.uniform(0.5, scene.lease_seconds)
    url = scene.stack.database_url
    if url.startswith("sqlite"):
        return scene.later(lambda: _hold_sqlite(url.removeprefix("sqlite:///"), seconds))
    if scene.random.random() < 0.3:
        return scene.later(lambda: _hold_postgres(url, seconds))
    with psycopg.connect(POSTGRES, autocommit=True, connect_timeout=5) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [url.rpartition("/")[2]]
        )
    return True


def _hold_sqlite(path: str, seconds: float) -> None:
    connection = sqlite3.connect(path, timeout=20, isolation_level=None)
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    connection.close()


def _hold_postgres(url: str, seconds: float) -> None:
    with contextlib.suppress(psycopg.Error), psycopg.connect(url, connect_timeout=5) as connection:
        connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        time.sleep(seconds)
        connection.rollback()


def corrupt_checkpoint(scene: Scene) -> bool:
    """Change a byte of the newest checkpoint of a job that trains, whichever attempt wrote it, and end the trainer."""
    trainer = _trainer(scene)
    if trainer is None:
        return False
    run_dirs = sorted((scene.stack.runs_dir / trainer.job).glob("[0-9]*"), key=lambda path: int(path.name))
    try:
        whole = [path for run_dir in run_dirs for path in sorted((run_dir / "checkpoints").glob("[0-9]*"))]
        newest = whole[-1]
        files = json.loads((newest / "manifest.json").read_text())["files"]
        victim = newest / scene.random.choice([file["name"] for file in files if file["bytes"]])
        scene.corrupted.add(newest)
        damaged = bytearray(victim.read_bytes())
        damaged[scene.random.randrange(len(damaged))] ^= 0x40
        # A new file in its place: the old one may be shared with other folders by hard links.
        fresh = victim.with_name(f".{victim.name}.damaged")
        fresh.write_bytes(damaged)
        fresh.replace(victim)
    except (OSError, ValueError, IndexError):
        return False
    return _signal(trainer, signal.SIGKILL)


def fill_disk(scene: Scene) -> bool:
    """Take every free byte of the small disk for some seconds."""
    if not scene.small_disk:
        return False
    seconds = scene.random.uniform(2.0, 8.0)
    spare = scene.random.choice((0, 0, 64 << 10, 512 << 10))
    return scene.later(lambda: _fill(scene.stack.data_dir, seconds, spare))


def _fill(data_dir: Path, seconds: float, spare: int) -> None:
    ballast = data_dir / "ballast"
    until = time.monotonic() + seconds
    size = 0
    try:
        with ballast.open("wb") as file:
            while time.monotonic() < until:
                free = shutil.disk_usage(data_dir).free - spare
                if free > 0:
                    with contextlib.suppress(OSError):
                        os.posix_fallocate(file.fileno(), size, free)
                        size += free
                time.sleep(0.2)
    finally:
        ballast.unlink(missing_ok=True)


def _signal(trainer: Trainer | None, number: signal.Signals) -> bool:
    return _send(None if trainer is None else trainer.pid, number)


def _send(pid: int | None, number: signal.Signals) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


FAULTS: dict[str, tuple[Fault, int]] = {
    "kill_worker": (kill_worker, 10),
    "deploy_worker": (deploy_worker, 5),
    "stop_worker": (stop_worker, 8),
    "kill_slot": (kill_slot, 6),
    "stop_slot": (stop_slot, 6),
    "kill_trainer": (kill_trainer, 8),
    "stop_trainer": (stop_trainer, 6),
    "kill_guardian": (kill_guardian, 4),
    "kill_api": (kill_api, 6),
    "stop_api": (stop_api, 4),
    "kill_sweeper": (kill_sweeper, 4),
    "stop_sweeper": (stop_sweeper, 3),
    "kill_broker": (kill_broker, 6),
    "stop_broker": (stop_broker, 3),
    "flush_broker": (flush_broker, 5),
    "cut_database": (cut_database, 8),
    "corrupt_checkpoint": (corrupt_checkpoint, 8),
    "fill_disk": (fill_disk, 4),
}
"""Name -> (what it does, its weight in the draw)."""
