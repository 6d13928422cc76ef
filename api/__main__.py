"""`python -m api`: the API on uvicorn, at MINILLM_HOST and MINILLM_PORT; `python -m api keys`: its API keys."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

import uvicorn
from sqlalchemy.exc import DBAPIError

from api.app import create_app
from api.http.server import server_config
from api.keys import command as keys
from store.api_keys import KeyRepository
from store.db.database import Database
from store.program import EX_CONFIG, begin
from store.settings import Settings

EX_USAGE = 64  # sysexits.h


def _refuse(reason: str) -> int:
    print(f"The API does not start: {reason}.", file=sys.stderr)
    return EX_CONFIG


def _has_usable_key(settings: Settings) -> bool:
    if settings.bootstrap_api_key is not None:
        return True
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            return KeyRepository(session, b"").any_usable()
    finally:
        database.dispose()


def main(arguments: Sequence[str] = ()) -> int:
    if arguments:
        if arguments[0] == "keys":
            return keys.main(arguments[1:])
        print("usage: python -m api [keys ...]", file=sys.stderr)
        return EX_USAGE
    settings = begin("api")
    try:
        app = create_app(settings)
        if not settings.is_loopback:
            settings.check_bind(has_keys=_has_usable_key(settings))
    except ValueError as error:
        return _refuse(str(error))
    except DBAPIError as error:
        return _refuse(f"whether it has API keys cannot be read from its database ({type(error).__name__})")
    server = uvicorn.Server(server_config(app, settings))
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
