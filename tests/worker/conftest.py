"""What the tests of this room share: short times, jobs for the fake trainer, and programs that end with the test."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from minillm_core.spec import JobSpec
from store.bytes.blobs import LocalBlobs
from store.db.database import Database
from store.db.ids import new_id
from store.db.tables import Attempt, Job
from store.files import FileRepository
from store.jobs.leases import claim
from store.jobs.repository import JobRepository
from store.jobs.vocabulary import JobState
from store.settings import Settings
from tests.worker.fake_launcher import FakeLauncher
from worker.attempt.supervisor import Supervisor
from worker.process.guardian import boot_time
from worker.process.identity import ATTEMPT_VARIABLE, attempt_processes, kill_attempt

OWNER = "key_tests"


def wait_until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """The first true answer of `condition`, asked every 20 ms."""
    until = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


SHORT_LEASE = 3.0
"""For tests that wait for its end. The others have one that no slow moment of the machine ends."""


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    (tmp_path / "runs").mkdir()
    (tmp_path / "models" / "teacher").mkdir(parents=True)
    return Settings(
        data_dir=tmp_path,
        database_url=database_url,
        broker_url="redis://127.0.0.1:1/0",
        lease_seconds=10.0,
        heartbeat_seconds=0.2,
        poll_seconds=0.2,
        sweep_seconds=0.2,
        stop_grace_seconds=3.0,
        retry_base_seconds=0.0,
        min_free_bytes=0,
    )


class Service:
    """Jobs, and the means to run them, on one database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.drain = threading.Event()

    def submit(
        self, *, scheduling: dict[str, Any] | None = None, student: dict[str, Any] | None = None, **metadata: str
    ) -> str:
        """A queued job for the fake trainer; its id."""
        file_id = new_id("file")
        blob = LocalBlobs(self.settings.files_dir).put(file_id, [b"{}\n"], limit=100)
        spec = JobSpec.model_validate(
            {
                "metadata": metadata,
                "teacher": {"model": "path:teacher"},
                "student": student or {"prune_teacher": {"layers": 1}},
                "dataset": {"file": file_id},
                "method": {"type": "sft"},
                "scheduling": scheduling or {},
            }
        )
        with self.database.write() as session:
            FileRepository(session).create(
                id=file_id, owner_id=OWNER, filename="rows", purpose="dataset", bytes=blob.bytes, sha256=blob.sha256
            )
            return JobRepository(session).create(owner_id=OWNER, spec=spec).id

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return JobRepository(session).get(OWNER, job_id)

    def state(self, job_id: str) -> JobState:
        return self.job(job_id).state

    def attempts(self, job_id: str) -> list[Any]:
        with self.database.read() as session:
            repository = JobRepository(session)
            return list(repository.attempts(repository.get(OWNER, job_id)))

    def steps(self, job_id: str) -> int:
        return self.job(job_id).step or 0

    def do(self, job_id: str, method: str, **options: Any) -> None:
        """One of the repository's requests, such as `request_cancel`."""
        with self.database.write() as session:
            repository = JobRepository(session)
            getattr(repository, method)(repository.get(OWNER, job_id), **options)

    def supervisor(
        self,
        worker_id: str = "wrk_tests",
        *,
        model_folder: Callable[[str], Path | None] = lambda _: None,
        **changes: Any,
    ) -> Supervisor:
        """The supervisor of the next job's claim."""
        settings = self.settings.model_copy(update=changes)
        claimed_at = boot_time()
        with self.database.write() as session:
            claimed = claim(session, worker_id, "tests", os.getpid(), settings.lease_seconds)
        assert claimed is not None
        return Supervisor(
            database=self.database,
            settings=settings,
            launcher=FakeLauncher(),
            claim=claimed,
            claimed_at=claimed_at,
            drain=self.drain,
            model_folder=model_folder,
        )

    def run(self, **changes: Any) -> None:
        """Run one attempt of the next job to its end."""
        self.supervisor(**changes).run()

    def run_aside(self, **changes: Any) -> threading.Thread:
        """The same in a thread."""
        thread = threading.Thread(target=self.supervisor(**changes).run, daemon=True)
        thread.start()
        return thread

    def processes(self, job_id: str) -> int:
        """Living processes of all attempts of a job."""
        ids = [attempt.id for attempt in self.attempts(job_id)]
        return sum(len(found) for found in attempt_processes(ids).values())


@pytest.fixture
def service(database: Database, settings: Settings) -> Iterator[Service]:
    service = Service(database, settings)
    yield service
    with database.read() as session:
        ids = list(session.scalars(select(Attempt.id)))
    for attempt_id in attempt_processes(ids):
        assert kill_attempt(attempt_id) == []


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """The environment that gives a program the tests' settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MINILLM_")}
    for name in (
        *("data_dir", "database_url", "broker_url", "lease_seconds", "heartbeat_seconds", "poll_seconds"),
        *("sweep_seconds", "stop_grace_seconds", "retry_base_seconds", "min_free_bytes"),
    ):
        environment[f"MINILLM_{name.upper()}"] = str(getattr(settings, name))
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    return environment


@pytest.fixture
def mark() -> str:
    """What the environment of this test's programs carries, to find what they leave."""
    return new_id("evt")


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path, mark: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a program; whatever it left is killed at the end."""
    programs: list[subprocess.Popen[bytes]] = []

    def starter(*command: str, **changes: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "programs.log").open("ab") as log:
            program = subprocess.Popen(
                [sys.executable, *command],
                env={**environment, **changes, "TEST_MARK": mark},
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        programs.append(program)
        return program

    yield starter
    for program in programs:
        program.kill()
        program.wait()
        assert program.stdout is not None
        program.stdout.close()
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_MARK") == mark and ATTEMPT_VARIABLE not in process.environ():
                process.kill()
        except (psutil.Error, OSError):
            continue
