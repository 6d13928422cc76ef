"""The only clock that leases, backoff and expiry are judged by: the database's."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import text
from sqlalchemy.orm import Session

_SQLITE = text("SELECT strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')")
# now() would be the start of the transaction, which may long have waited for a lock.
_POSTGRESQL = text("SELECT clock_timestamp()")


def database_now(session: Session) -> dt.datetime:
    """The database's time, aware, in UTC. Milliseconds on SQLite, microseconds on PostgreSQL."""
    if session.get_bind().dialect.name == "sqlite":
        return dt.datetime.fromisoformat(session.scalar(_SQLITE) or "")
    value = session.scalar(_POSTGRESQL)
    assert isinstance(value, dt.datetime)
    return value.astimezone(dt.UTC)
