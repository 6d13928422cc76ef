"""Fills a database with many jobs and measurements, by a few statements that make rows from one row."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

from sqlalchemy import Connection, text

from minillm_core.spec import JobSpec
from store.bytes.blobs import LocalBlobs
from store.db import schema
from store.db.database import Database
from store.db.ids import new_id
from store.db.tables import Job
from store.files import FileRepository
from store.jobs.metrics import names_key
from store.jobs.repository import JobRepository
from store.settings import Settings
from tests.api.model_folders import write_model

OWNER = "local"
OWNERS = 10
ASKED_FOR = 100
STEPS = 5_000
"""Metric points of each job that has any."""
NAMES = ("loss", "reverse_kl", "reward", "tokens_per_second")


@dataclasses.dataclass(frozen=True)
class Seeded:
    spec: dict[str, Any]
    """Of a job that the API accepts."""
    measured: str
    """A job with measurements."""
    asked_for: list[str]
    """Jobs of OWNER, spread over all of its own; a tenth of them are queued."""
    jobs: int
    points: int


def seed(settings: Settings, *, jobs: int, points: int) -> Seeded:
    """A migrated database of `jobs` jobs, every tenth of them queued, and `points` metric points."""
    write_model(settings.models_dir, "teacher", layers=4)
    write_model(settings.models_dir, "student", layers=2)
    database = Database(settings.database_url)
    schema.upgrade(database.engine)
    rows = b"".join(json.dumps({"instruction": f"say {n}", "output": "cat"}).encode() + b"\n" for n in range(100))
    with database.write() as session:
        blob = LocalBlobs(settings.files_dir).put(file_id := new_id("file"), io.BytesIO(rows), limit=len(rows))
        FileRepository(session).create(
            id=file_id, owner_id=OWNER, filename="rows.jsonl", purpose="dataset",
            bytes=blob.bytes, sha256=blob.sha256, lines=100,
        )  # fmt: skip
        spec = {
            "name": "benchmark",
            "metadata": {"team": "search", "run": "nightly"},
            "teacher": {"model": "path:teacher"},
            "student": {"model": "path:student"},
            "dataset": {"file": file_id},
            "method": {"type": "minillm", "rollouts_per_round": 64},
            "training": {"max_steps": 1000, "max_prompt_tokens": 128, "max_new_tokens": 128},
        }
        first = JobRepository(session).create(owner_id=OWNER, spec=JobSpec.model_validate(spec))
        first.metrics = {name: 0.5 for name in NAMES}
        template = first.id
    measured = max(1, min((jobs - 1) // OWNERS, points // STEPS))
    with database.engine.execution_options(minillm_write=True).begin() as connection:
        _add_jobs(connection, template, jobs - 1)
        steps = _add_points(connection, measured, min(STEPS, points))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE" if database.dialect == "sqlite" else "VACUUM ANALYZE")
    database.dispose()
    own = range(OWNERS, jobs, OWNERS)
    spread = own[:: max(1, len(own) // ASKED_FOR)][:ASKED_FOR]
    return Seeded(spec, _job_id(OWNERS), [_job_id(number) for number in spread], jobs, steps)


def _job_id(number: int) -> str:
    return f"job_{number:026d}"


def _series(connection: Connection, name: str, count: int) -> str:
    """A `WITH` table `name` whose column `n` is 1 to `count`."""
    if connection.dialect.name == "postgresql":
        return f"{name}(n) AS (SELECT generate_series(1, {count}))"
    return f"{name}(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM {name} WHERE n < {count})"


def _add_jobs(connection: Connection, template: str, count: int) -> None:
    """Copies of the template, of ten owners by turns, each a second older than the next.

    Of ten jobs of an owner one is queued, and the others have succeeded.
    """
    postgres = connection.dialect.name == "postgresql"
    number = "lpad(n::text, 26, '0')" if postgres else "printf('%026d', n)"
    at = (
        f"created_at - make_interval(secs => {count + 1} - n)"
        if postgres
        else f"strftime('%Y-%m-%d %H:%M:%f000', created_at, (n - {count + 1}) || ' seconds')"
    )
    ended = f"(n / {OWNERS}) % 10 <> 3"
    changed = {
        "id": f"'job_' || {number}",
        "owner_id": f"CASE WHEN n % {OWNERS} = 0 THEN '{OWNER}' ELSE 'owner-' || n % {OWNERS} END",
        "created_at": at,
        "updated_at": at,
        "started_at": f"CASE WHEN {ended} THEN {at} END",
        "finished_at": f"CASE WHEN {ended} THEN {at} END",
        "state": f"CASE WHEN {ended} THEN 'succeeded' ELSE 'queued' END",
        "attempt": f"CASE WHEN {ended} THEN 1 ELSE 0 END",
        "step": f"CASE WHEN {ended} THEN 1000 END",
        "fraction": f"CASE WHEN {ended} THEN 1.0 ELSE 0.0 END",
    }
    columns = [column.name for column in Job.__table__.columns]
    names = ", ".join(f'"{name}"' for name in columns)
    values = ", ".join(changed.get(name, f'"{name}"') for name in columns)
    connection.execute(
        text(
            f"WITH RECURSIVE {_series(connection, 'numbers', count)} INSERT INTO jobs ({names}) "
            f"SELECT {values} FROM jobs CROSS JOIN numbers WHERE id = :template"
        ),
        {"template": template},
    )


def _add_points(connection: Connection, jobs: int, steps: int) -> int:
    """`steps` metric points of four values for each of so many `jobs` of one owner. Returns how many there are."""
    postgres = connection.dialect.name == "postgresql"
    number = f"(j.n * {OWNERS})"
    job = f"'job_' || lpad({number}::text, 26, '0')" if postgres else f"'job_' || printf('%026d', {number})"
    value = "round((1.0 / s.n)::numeric, 6)" if postgres else "round(1.0 / s.n, 6)"
    pairs = " || ', ' || ".join(f"'\"{name}\": ' || {value}" for name in NAMES)
    values = f"('{{' || {pairs} || '}}')" + ("::json" if postgres else "")
    at = "clock_timestamp()" if postgres else "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
    connection.exec_driver_sql(
        f"WITH RECURSIVE {_series(connection, 'j', jobs)}, {_series(connection, 's', steps)} "
        'INSERT INTO metric_points (job_id, attempt, seq, phase, step, "values", names_key, created_at) '
        f"SELECT {job}, 1, s.n, 'training', s.n, {values}, {names_key(NAMES)}, {at} FROM j CROSS JOIN s"
    )
    return jobs * steps
