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
    """Upgrade to ``revision`` while holding a lock that other processes wait for. Raises BrokenReferences."""
    with _lock(engine):
        if engine.dialect.name == "sqlite":
            # The journal mode is kept in the file and cannot change inside a transaction.
            with engine.connect() as connection:
                _pragma(connection, "journal_mode = WAL")
        with migrating(engine) as connection:
            command.upgrade(alembic_config(connection), revision)


def downgrade(engine: Engine, revision: str = "base") -> None:
    """Downgrade to ``revision`` under the same lock. Raises BrokenReferences."""
    with _lock(engine), migrating(engine) as connection:
        command.downgrade(alembic_config(connection), revision)


class BrokenReferences(Exception):
    """A migration would leave rows that refer to none; it was rolled back."""


@contextlib.contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """One transaction to change tables in; nothing of it stays where the block raises.

    SQLite can hardly ALTER, so Alembic copies a table, drops the old one and renames the copy. With foreign keys on,
    that drop deletes every row of other tables that refers to it. So they are off here, which SQLite hears outside of
    a transaction alone, and are checked before the commit (https://sqlite.org/lang_altertable.html#otheralter).
    """
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            yield connection
        return
    with engine.connect() as connection:
        _pragma(connection, "foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                if broken:
                    tables = sorted({f"{child} -> {parent}" for child, _, parent, _ in broken})
                    raise BrokenReferences(f"{len(broken)} rows refer to none: {', '.join(tables)}")
        finally:
            _pragma(connection, "foreign_keys = ON")


def _pragma(connection: Connection, pragma: str) -> None:
    """Past SQLAlchemy, which would begin a transaction first."""
    raw = connection.connection.dbapi_connection
    assert raw is not None
    raw.execute(f"PRAGMA {pragma}")


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
