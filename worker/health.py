"""``python -m worker.health``: exit status 0 while a worker of this host is known to live, else 1.

For the health check of a container, which has one worker. It asks the database, as the rest of the service does: a
process that runs but cannot reach it is of no use.
"""

from __future__ import annotations

import socket
import sys

from sqlalchemy.exc import SQLAlchemyError

from store.db.database import Database
from store.program import begin
from store.settings import Settings
from store.workers import WorkerRepository

_MOST_WORKERS = 1000


def problem(settings: Settings, host: str) -> str | None:
    """Why no worker on ``host`` counts as alive; None where one does."""
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            workers = WorkerRepository(session)
            now = database.now(session)
            here = [worker for worker in workers.list(limit=_MOST_WORKERS) if worker.host == host]
            if any(workers.is_online(worker, now) for worker in here):
                return None
    except SQLAlchemyError as error:
        return f"the database does not answer: {type(error).__name__}"
    finally:
        database.dispose()
    return "its heartbeat has stopped" if here else f"no worker is registered for {host}"


def main() -> int:
    found = problem(begin("health"), socket.gethostname())
    if found is not None:
        print(f"unhealthy: {found}", file=sys.stderr)
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main())
