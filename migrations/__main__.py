"""``python -m migrations``: brings the configured database to the newest revision."""

from __future__ import annotations

from store.db import schema
from store.db.database import Database
from store.program import begin


def main() -> None:
    database = Database(begin("migrations").database_url)
    schema.upgrade(database.engine)
    print(f"{database.url.render_as_string(hide_password=True)} is at {', '.join(schema.heads())}")
    database.dispose()


if __name__ == "__main__":
    main()
