"""Fixtures that every room's tests share: databases made by the migrations, and what was used at the end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import delete

from store.db import schema
from store.db.database import Database
from store.db.tables import Base
from tests import services

FIRST = (
    "minillm_core/test_zero.py",
    "minillm_core/test_run.py",
    "faults/test_attempts.py",
    "worker/attempt/test_supervisor.py",
    "client/test_whole.py",
    "faults/test_twenty_workers.py",
    "faults/test_broker.py",
    "packaging/test_readme.py",
    "benchmarks/test_smoke.py",
    "faults/test_trainer.py",
    "minillm_core/native/test_library.py",
    "worker/test_worker.py",
    "store/jobs/test_invariants.py",
)
"""Files of half a minute, begun first: one that begins last leaves the other processes idle until its end."""


def pytest_configure(config: pytest.Config) -> None:
    """``TEST_REQUIRES=postgresql,redis``: no run that leaves their tests out may pass for a whole one."""
    required = {name for name in os.environ.get("TEST_REQUIRES", "").split(",") if name}
    if missing := sorted(name for name in required if not services.answering().get(name)):
        pytest.exit(f"required, and not answering on this machine: {', '.join(missing)} (see tests/services.py)", 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    home = Path(__file__).parent
    places = {home / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(FIRST)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_url" in metafunc.fixturenames:
        dialects = ["sqlite"] + (["postgresql"] if services.postgres_url() else [])
        metafunc.parametrize("database_url", dialects, indirect=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    database = Database(f"sqlite:///{path}")
    schema.upgrade(database.engine)
    database.dispose()
    return path


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[str]:
    """URL of a migrated PostgreSQL database of this test process."""
    server = services.postgres_url()
    assert server is not None
    _drop_leftovers(server)
    with fresh_postgres_database(server) as url:
        database = Database(url)
        schema.upgrade(database.engine)
        database.dispose()
        yield url


@contextlib.contextmanager
def fresh_postgres_database(server: str) -> Iterator[str]:
    """An empty database, dropped at the end whoever is still connected."""
    name = f"minillm_test_{os.getpid()}_{os.urandom(4).hex()}"
    _execute(server, f'CREATE DATABASE "{name}"')
    try:
        yield server.rsplit("/", 1)[0] + f"/{name}"
    finally:
        _execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a migrated, empty database: SQLite always, PostgreSQL too where it answers."""
    dialect: str = request.param
    services.USED.add(dialect)
    if dialect == "sqlite":
        path = tmp_path / "minillm.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    url: str = request.getfixturevalue("postgres_database")
    database = Database(url)
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    database.dispose()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The same as :class:`store.db.database.Database`."""
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """Broker URL of an embedded Valkey that this session's tests share."""
    with services.embedded_valkey() as url:
        yield url


def _execute(server: str, statement: str) -> None:
    with psycopg.connect(server, autocommit=True, connect_timeout=5) as connection:
        connection.execute(statement)


def _drop_leftovers(server: str) -> None:
    """Drop databases of test processes that were killed."""
    with psycopg.connect(server, autocommit=True, connect_timeout=5) as connection:
        for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall():
            match = re.fullmatch(r"minillm_test_(\d+)_[0-9a-f]+", name)
            if match is not None and not Path(f"/proc/{match[1]}").exists():
                connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:  # a worker process of pytest-xdist hands its part to the one that prints
        output["services_used"] = sorted(services.USED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    services.USED.update(getattr(node, "workeroutput", {}).get("services_used", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    known = ("sqlite", "postgresql", "valkey", "redis")
    used = [name for name in known if name in services.USED]
    unused = [name for name in known if name not in services.USED]
    line = f"services used: {', '.join(used) or 'none'}"
    terminalreporter.write_line(line + (f"; not used: {', '.join(unused)}" if unused else ""))
    if away := sorted(name for name, there in services.answering().items() if not there):
        terminalreporter.write_line(f"not answering here, so that the tests with them were left out: {', '.join(away)}")
