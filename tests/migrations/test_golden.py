"""Databases as each release left them come to the newest revision with every row; how dumps are made: release.py."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import op
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, Text, func, select

from minillm_core.spec.references import references
from minillm_core.spec.versions import read_spec
from store.db import schema
from store.db.database import Database
from store.db.tables import MetricPoint
from tests import services
from tests.conftest import fresh_postgres_database
from tests.migrations.release import GOLDEN, count_rows, frozen, sha256
from tests.store import scenes

DUMPS = sorted(GOLDEN.glob("*.sql"))

CHANGED: set[tuple[str, str]] = set()
"""(table, column) whose values a later revision changes on purpose; that revision has its own test of how."""


@pytest.fixture(params=DUMPS, ids=lambda dump: dump.stem)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database as a release left it."""
    dump: Path = request.param
    revision, dialect = dump.stem.split(".")
    services.USED.add(dialect)
    if dialect == "sqlite":
        with sqlite3.connect(tmp_path / "released.db") as connection:
            connection.executescript(dump.read_text())
        connection.close()
        yield from _opened(f"sqlite:///{tmp_path / 'released.db'}", revision)
        return
    server = services.postgres_url()
    if server is None:
        pytest.skip("PostgreSQL does not answer")
    with fresh_postgres_database(server) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(dump.read_text())  # type: ignore[call-overload]
        yield from _opened(url, revision)


def _opened(url: str, revision: str) -> Iterator[Database]:
    database = Database(url)
    with database.engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_heads() == (revision,)
    yield database
    database.dispose()


def test_no_row_is_lost_and_no_value_changed(released: Database) -> None:
    counts = count_rows(released.engine)
    assert min(counts.values()) > 0
    before = _contents(released.engine)
    schema.upgrade(released.engine)
    left = count_rows(released.engine)
    assert {name: left.get(name) for name in counts} == counts
    after = _contents(released.engine)
    for table, rows in before.items():
        kept = sorted((rows[0].keys() & after[table][0].keys()) - {name for owner, name in CHANGED if owner == table})
        assert _sorted(after[table], kept) == _sorted(rows, kept), table


def test_a_released_database_goes_on(released: Database) -> None:
    """What is in it can be read by the models of today, and its jobs live on."""
    schema.upgrade(released.engine)
    with released.read() as session:
        assert session.scalar(select(func.count()).where(MetricPoint.names_key.is_(None))) == 0
    scenes.make_job(released)
    taken = scenes.take(released)
    assert scenes.row(released, taken.job_id).attempt == taken.attempt


def test_students_become_artifacts(released: Database) -> None:
    before = {row["id"]: row for row in _contents(released.engine)["jobs"] if row.get("student_path")}
    if not before:
        pytest.skip("a release that had artifacts")
    schema.upgrade(released.engine)
    after = {row["job_id"]: row for row in _contents(released.engine)["artifacts"]}
    assert after.keys() == before.keys()
    for id, job in before.items():
        row = after[id]
        assert f"runs/{id}/{row['attempt']}/{row['path']}" == job["student_path"]
        assert row["state"] == ("announced" if job["student_manifest"] is None else "verified")
        moved = ("manifest", "manifest_sha256", "bytes", "parameters", "model_id")
        assert [row[name] for name in moved] == [job[f"student_{name}"] for name in moved]
    assert {row["state"] for row in after.values()} == {"announced", "verified"}


def test_what_jobs_name_becomes_rows(released: Database) -> None:
    schema.upgrade(released.engine)
    tables = _contents(released.engine)
    told = {(row["job_id"], row["kind"], row["reference"]) for row in tables["job_references"]}
    specs = {row["id"]: read_spec(row["spec"]) for row in tables["jobs"]}
    assert told == {(id, found.kind, found.name) for id, spec in specs.items() for found in references(spec)}


def test_released_revisions_are_frozen() -> None:
    paths = [Path(revision.path) for revision in ScriptDirectory.from_config(schema.alembic_config()).walk_revisions()]
    now = {path.name: sha256(path) for path in paths}
    names = frozen()
    assert {name: now.get(name) for name in names} == names, "a released revision changed: add a new one instead"
    for dialect in ("sqlite", "postgresql"):
        assert (GOLDEN / f"{max(names).split('_')[0]}.{dialect}.sql").exists()


def test_a_table_that_others_refer_to_can_be_rebuilt(database: Database) -> None:
    job_id = scenes.make_job(database)
    before = count_rows(database.engine)
    with schema.migrating(database.engine) as connection, _operations(connection):
        with op.batch_alter_table("jobs", recreate="always" if database.dialect == "sqlite" else "auto") as jobs:
            jobs.alter_column("name", existing_type=Text(), nullable=True, new_column_name="title")
        with op.batch_alter_table("jobs", recreate="always" if database.dialect == "sqlite" else "auto") as jobs:
            jobs.alter_column("title", existing_type=Text(), nullable=True, new_column_name="name")
    assert count_rows(database.engine) == before
    assert before["events"] == scenes.row(database, job_id).event_seq
    with database.write() as session:  # foreign keys are on again, also on this connection
        session.connection().exec_driver_sql("DELETE FROM jobs")
    assert count_rows(database.engine)["events"] == 0


def test_a_migration_that_leaves_orphans_is_rolled_back(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    schema.upgrade(database.engine)
    scenes.make_job(database)
    before = count_rows(database.engine)
    with (
        pytest.raises(schema.BrokenReferences, match="events -> jobs"),
        schema.migrating(database.engine) as connection,
    ):
        connection.exec_driver_sql("DELETE FROM jobs")
    assert count_rows(database.engine) == before
    database.dispose()


def _operations(connection: Connection) -> Any:
    return Operations.context(MigrationContext.configure(connection))


def _contents(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, as the tables say of themselves what is in them."""
    metadata = MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        return {
            name: [dict(row) for row in connection.execute(table.select()).mappings()]
            for name, table in metadata.tables.items()
            if name != "alembic_version"
        }


def _sorted(rows: list[dict[str, Any]], columns: list[str]) -> list[str]:
    return sorted(json.dumps({name: row[name] for name in columns}, default=str, sort_keys=True) for row in rows)
