"""Schema migrations: ``python -m migrations`` brings the configured database to the newest revision."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
_ADVISORY_LOCK = 0x6D696E69  # any fixed number: "mini"


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without its ini file; ``connection`` is what env.py runs on."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def heads() -> tuple[str, ...]:
    """The newest revisions; there is exactly one."""
    return tuple(ScriptDirectory.from_config(alembic_config()).get_heads())


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Upgrade to ``revision`` while holding a lock that other processes wait for."""
    with _lock(engine):
        if engine.dialect.name == "sqlite":
            # The journal mode is kept in the file and cannot change inside a transaction.
            with engine.connect() as connection:
                raw = connection.connection.dbapi_connection
                assert raw is not None
                raw.execute("PRAGMA journal_mode = WAL")
        with engine.begin() as connection:
            command.upgrade(alembic_config(connection), revision)


def downgrade(engine: Engine, revision: str = "base") -> None:
    """Downgrade to ``revision`` under the same lock."""
    with _lock(engine), engine.begin() as connection:
        command.downgrade(alembic_config(connection), revision)


def at_head(engine: Engine) -> bool:
    """Whether the schema is at the newest revision."""
    with engine.connect().execution_options(minillm_write=False) as connection:
        return set(MigrationContext.configure(connection).get_current_heads()) == set(heads())


@contextlib.contextmanager
def _lock(engine: Engine) -> Iterator[None]:
    if engine.dialect.name == "sqlite":
        with open(f"{engine.url.database}.migrate.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        return
    with engine.connect() as connection:
        # Another's migration may take longer than any statement of the service has to wait.
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        connection.commit()
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
            connection.commit()
