"""Processes that outlived their attempt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from store.db.tables import Job
from store.jobs.leases import claim
from tests.fixtures.play import Service
from tests.fixtures.process import wait_until
from worker.process.group import ProcessGroup
from worker.process.guardian import boot_time
from worker.process.identity import attempt_processes
from worker.services.orphans import Orphans
from worker.services.recover import Recover


def test_of_a_dead_attempt_are_ended_and_of_a_living_one_not(service: Service, tmp_path: Path) -> None:
    orphans = Orphans(service.database)
    job_id = service.submit()
    with service.database.write() as session:
        claimed = claim(session, "wrk_tests", "tests", os.getpid(), 30.0)
    assert claimed is not None
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    group = ProcessGroup.start(sleeper, run_dir=tmp_path, attempt_id=claimed.attempt_id, deadline=boot_time() + 60)
    try:
        wait_until(lambda: len(attempt_processes([claimed.attempt_id]).get(claimed.attempt_id, [])) == 2)
        assert orphans.run_once() == []
        with service.database.write() as session:
            session.get_one(Job, job_id).lease_expires_at = service.database.now(session)
        Recover(service.database, service.settings).run_once()
        assert orphans.run_once() == [claimed.attempt_id]
        assert group.wait(5) is not None
        # A process that was sent SIGKILL dies when it next gets the processor.
        wait_until(lambda: attempt_processes([claimed.attempt_id]) == {}, 5.0)
    finally:
        assert group.kill() == []
