"""The health check of a worker's container."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path

from store.db.database import Database
from store.settings import Settings
from store.workers import WorkerRepository
from worker.health import problem


def _register(database: Database, host: str) -> str:
    with database.write() as session:
        return WorkerRepository(session).register(host=host, pid=1, heartbeat_seconds=5).id


class TestProblem:
    def test_a_worker_with_a_fresh_heartbeat_is_well(self, database: Database, database_url: str) -> None:
        _register(database, "here")
        assert problem(Settings(database_url=database_url), "here") is None

    def test_only_this_host_counts(self, database: Database, database_url: str) -> None:
        _register(database, "elsewhere")
        assert problem(Settings(database_url=database_url), "here") == "no worker is registered for here"

    def test_a_late_heartbeat_is_noticed(self, database: Database, database_url: str) -> None:
        worker_id = _register(database, "here")
        with database.write() as session:
            WorkerRepository(session).get(worker_id).heartbeat_at -= dt.timedelta(seconds=16)
        assert problem(Settings(database_url=database_url), "here") == "its heartbeat has stopped"

    def test_so_is_a_database_that_does_not_answer(self, tmp_path: Path) -> None:
        found = problem(Settings(database_url=f"sqlite:///{tmp_path / 'empty.db'}"), "here")
        assert found == "the database does not answer: OperationalError"


def test_the_program_says_so_by_its_exit_status(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "MINILLM_DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "worker.health"], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(b"unhealthy: ")
