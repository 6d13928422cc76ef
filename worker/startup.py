"""What the programs of this room do first."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time

from sqlalchemy.exc import SQLAlchemyError

from store.db import schema
from store.db.database import Database

UNAVAILABLE = 69
"""Exit code where the database is missing or its schema is not the newest (EX_UNAVAILABLE of sysexits.h)."""
SCHEMA_SECONDS = 60.0


def end_on_sigterm() -> None:
    """Until there is work to save, SIGTERM ends the program; as a container's first process it would be ignored."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def wait_for_schema(database: Database, seconds: float = SCHEMA_SECONDS) -> bool:
    """Whether the database answers with the newest schema within `seconds`; says what to do where it does not."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(SQLAlchemyError):
            if schema.at_head(database.engine):
                return True
        if time.monotonic() > until:
            message = "the database does not answer or lacks its schema: run `python -m migrations` first"
            logging.getLogger(__name__).error(message)
            return False
        time.sleep(0.5)
