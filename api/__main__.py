"""`python -m api`: the API on uvicorn, at MINILLM_HOST and MINILLM_PORT."""

from __future__ import annotations

import sys

import uvicorn

from api.app import create_app
from api.auth import any_key_exists
from store.settings import get_settings

# Long enough for a download's current chunk, short enough for event streams not to hold up a deploy.
_SHUTDOWN_SECONDS = 5


def main() -> int:
    settings = get_settings()
    app = create_app(settings)
    try:
        settings.check_bind(has_keys=any_key_exists(app.state.services))
    except ValueError as error:
        print(f"The API does not start: {error}.", file=sys.stderr)
        return 78  # EX_CONFIG of sysexits.h
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
