"""Every revision on both databases: one head, up and down with data, no drift, two starters at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from store.db import schema
from store.db.database import Database
from store.db.tables import Base
from store.jobs.repository import JobRepository
from tests import services
from tests.conftest import fresh_postgres_database
from tests.migrations.populate import populate
from tests.migrations.release import count_rows

SINCE_THE_FIRST = (
    "api_keys",
    "attempts",
    "checkpoints",
    "events",
    "files",
    "jobs",
    "metric_points",
    "models",
    "workers",
)
"""Tables whose rows outlive any downgrade but the last."""

DIALECTS = ["sqlite"] + (["postgresql"] if services.postgres_url() else [])


@pytest.fixture(params=DIALECTS)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without any table."""
    services.USED.add(request.param)
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'deeper' / 'empty.db'}")
        yield database
        database.dispose()
        return
    server = services.postgres_url()
    assert server is not None
    with fresh_postgres_database(server) as url:
        database = Database(url)
        yield database
        database.dispose()


def test_single_head() -> None:
    script = ScriptDirectory.from_config(schema.alembic_config())
    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1


def test_no_drift_from_the_models(database: Database) -> None:
    sqlite = database.dialect == "sqlite"
    options = {
        "compare_type": True,
        "compare_server_default": True,
        # What Alembic reads of an index on SQLite lacks its order (DESC): the test below reads it.
        "include_object": lambda _item, _name, kind, _reflected, _other: kind != "index" or not sqlite,
    }
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []


def test_no_drift_of_sqlite_indexes(sqlite_template: Path, tmp_path: Path) -> None:
    """A migration that rebuilds a table in batch mode must make its index with DESC again."""
    made = Database(f"sqlite:///{tmp_path / 'made.db'}")
    Base.metadata.create_all(made.engine)
    migrated = Database(f"sqlite:///{sqlite_template}")
    assert _indexes(migrated) == _indexes(made)


def _indexes(database: Database) -> dict[str, str]:
    with database.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL")
        indexes = {name: sql.replace('"', "") for name, sql in found}
    database.dispose()
    return indexes


def test_up_down_up_with_data(empty: Database) -> None:
    assert not schema.at_head(empty.engine)
    schema.upgrade(empty.engine)
    assert schema.at_head(empty.engine)
    populate(empty)
    before = count_rows(empty.engine)
    assert min(before.values()) > 0, f"populate.py makes no rows of a table: {before}"
    script = ScriptDirectory.from_config(schema.alembic_config())
    for revision in [revision.revision for revision in script.walk_revisions()][1:]:
        schema.downgrade(empty.engine, revision)
        schema.upgrade(empty.engine)
        kept = count_rows(empty.engine)
        assert {name: kept[name] for name in SINCE_THE_FIRST} == {name: before[name] for name in SINCE_THE_FIRST}
    schema.downgrade(empty.engine)
    assert inspect(empty.engine).get_table_names() == ["alembic_version"]
    schema.upgrade(empty.engine)
    with empty.read() as session:
        assert JobRepository(session).list("usr_one").items == []


def test_two_starters_at_once(empty: Database) -> None:
    starters = [Database(empty.engine.url.render_as_string(hide_password=False)) for _ in range(4)]
    errors: list[BaseException] = []
    gate = threading.Barrier(len(starters))

    def start(database: Database) -> None:
        try:
            gate.wait(10)
            schema.upgrade(database.engine)
            assert schema.at_head(database.engine)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(database,)) for database in starters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for database in starters:
        database.dispose()
    assert errors == []


def test_sqlite_is_in_wal_mode(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    schema.upgrade(database.engine)
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        full = 2  # what was answered with 201 is on the disk, also where the power goes
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == full
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    database.dispose()
