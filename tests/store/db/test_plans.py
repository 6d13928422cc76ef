"""What is asked over and over finds its rows by an index: no statement of it reads or sorts a whole table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from store import quotas
from store.db.database import Database
from store.files import FileRepository
from store.jobs.leases import claim
from store.jobs.metrics import MetricRepository
from store.jobs.repository import JobRepository
from store.jobs.vocabulary import JobState
from tests.fixtures.sweep import sweep
from tests.store import scenes
from tests.store.scenes import OWNER

GROWING = ("jobs", "attempts", "events", "metric_points", "checkpoints", "files")


@pytest.fixture
def sqlite(sqlite_template: Path, tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "minillm.db"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}")
    yield database
    database.dispose()


def _jobs(session: Session) -> JobRepository:
    return JobRepository(session)


ASKED: dict[str, Callable[[Session, str], Any]] = {
    "get": lambda session, job: _jobs(session).get(OWNER, job),
    "list": lambda session, _: _jobs(session).list(OWNER),
    "list of a state": lambda session, _: _jobs(session).list(OWNER, states=[JobState.RUNNING]),
    "next page": lambda session, job: _jobs(session).list(OWNER, after=job),
    "queued of an owner": lambda session, _: quotas.check_queued(session, OWNER, 10),
    "running of an owner": lambda session, _: quotas.may_run(session, OWNER, 10),
    "stored by an owner": lambda session, _: quotas.check_stored(session, OWNER, 10**12),
    "depth": lambda session, _: _jobs(session).depth(),
    "places": lambda session, _: _jobs(session).queue_positions(_jobs(session).list(OWNER).items),
    "claim": lambda session, _: claim(session, "wrk_a", "host", 1, 30.0),
    "files": lambda session, _: FileRepository(session).list(OWNER),
    "metrics": lambda session, job: MetricRepository(session).series(_jobs(session).get(OWNER, job), limit=20),
    "thinned": lambda session, job: MetricRepository(session).series(_jobs(session).get(OWNER, job), points=20),
}


@pytest.mark.parametrize("what", [*ASKED, "sweep"])
def test_by_an_index(sqlite: Database, what: str) -> None:
    jobs = [scenes.make_job(sqlite, scheduling={"priority": number}) for number in (0, 1, 1)]
    said: list[tuple[str, Any]] = []
    listen = lambda _c, _cursor, text, values, _context, many: many or said.append((text, values))  # noqa: E731
    event.listen(sqlite.engine, "before_cursor_execute", listen)
    if what == "sweep":
        sweep(sqlite)
    else:
        with sqlite.write() as session:
            ASKED[what](session, jobs[0])
    event.remove(sqlite.engine, "before_cursor_execute", listen)
    with sqlite.read() as session:
        connection = session.connection()
        for text, values in said:
            if not text.startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
                continue
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)]
            for step in plan:
                words = step.split()
                whole = words[0] == "SCAN" and words[1] in GROWING and "INDEX ix_" not in step
                assert not whole, f"{step!r} in {text}"
                if what in ("claim", "list", "next page", "files"):
                    assert "TEMP B-TREE FOR ORDER BY" not in step, f"{step!r} in {text}"
