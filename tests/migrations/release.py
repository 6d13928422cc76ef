"""``python -m tests.migrations.release``: freeze the newest revision, once a release has it.

Writes into ``tests/migrations/golden/`` a dump of a database with rows in every table as this release makes them
(``<revision>.sqlite.sql`` and, by pg_dump, ``<revision>.postgresql.sql``) and the sha256 of every revision up to it
(``SHA256SUMS``). From then on test_golden.py upgrades these dumps, and a frozen revision may not change: what is
wrong with it is put right by a newer one. Needs the PostgreSQL of tests/services.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alembic.script import ScriptDirectory
from sqlalchemy import Engine, func, inspect, select, table

from store.db import schema
from store.db.database import Database
from tests import services
from tests.conftest import fresh_postgres_database
from tests.migrations.populate import populate

GOLDEN = Path(__file__).parent / "golden"
SUMS = GOLDEN / "SHA256SUMS"


def sha256(revision_file: Path) -> str:
    return hashlib.sha256(revision_file.read_bytes()).hexdigest()


def frozen() -> dict[str, str]:
    """Name of each released revision's file -> the sha256 it was released with."""
    return {name: digest for digest, name in (line.split() for line in SUMS.read_text().splitlines())}


def count_rows(engine: Engine) -> dict[str, int]:
    """Rows of every table but Alembic's own."""
    names = set(inspect(engine).get_table_names()) - {"alembic_version"}
    with engine.connect() as connection:
        return {
            name: connection.execute(select(func.count()).select_from(table(name))).scalar_one()
            for name in sorted(names)
        }


@contextlib.contextmanager
def populated(url: str) -> Iterator[Database]:
    database = Database(url)
    schema.upgrade(database.engine)
    populate(database)
    empty = [name for name, rows in count_rows(database.engine).items() if not rows]
    assert not empty, f"tests/migrations/populate.py makes no rows of {', '.join(empty)}"
    yield database
    database.dispose()


def main() -> None:
    (head,) = schema.heads()
    server = services.postgres_url()
    assert server is not None, "PostgreSQL does not answer"
    with tempfile.TemporaryDirectory() as folder, populated(f"sqlite:///{folder}/golden.db") as database:
        raw = database.engine.raw_connection()
        dump = "\n".join(raw.driver_connection.iterdump())  # type: ignore[union-attr]
        raw.close()
        (GOLDEN / f"{head}.sqlite.sql").write_text(dump + "\n")
    with fresh_postgres_database(server) as url, populated(url):
        command = ["pg_dump", "--inserts", "--no-owner", "--no-privileges", url]
        dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines = [line for line in dump.splitlines() if line and not line.startswith(("--", "\\"))]
        (GOLDEN / f"{head}.postgresql.sql").write_text("\n".join(lines) + "\n")
    revisions = reversed(list(ScriptDirectory.from_config(schema.alembic_config()).walk_revisions()))
    paths = [Path(revision.path) for revision in revisions]
    SUMS.write_text("".join(f"{sha256(path)}  {path.name}\n" for path in paths))
    print(f"revision {head} is frozen")


if __name__ == "__main__":
    main()
