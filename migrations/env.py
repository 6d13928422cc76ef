"""What Alembic runs. Every revision runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from store.db import schema
from store.db.database import Database
from store.db.tables import Base
from store.db.types import LookupText, UtcDateTime, Word
from store.settings import get_settings


def render_item(kind: str, item: object, _autogen: object) -> str | bool:
    """In revisions our column types appear as what they are in the database: revisions outlive our code."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, Word):
        return "sa.String(length=32)"
    if kind == "type" and isinstance(item, LookupText):
        return f"sa.String(length={item.impl_instance.length})"
    return False


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_item=render_item,
        # SQLite can hardly ALTER: Alembic copies the table instead.
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    database = Database(get_settings().database_url)
    with schema.migrating(database.engine) as own:
        run(own)
    database.dispose()
