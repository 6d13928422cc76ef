"""`python -m api`: the API on uvicorn, at MINILLM_HOST and MINILLM_PORT."""

from __future__ import annotations

import sys

import uvicorn
from sqlalchemy.exc import DBAPIError

from api.app import create_app
from api.auth import any_key_exists
from store.program import EX_CONFIG, begin

# Long enough for a download's current chunk, short enough for event streams not to hold up a deploy.
_SHUTDOWN_SECONDS = 5


def _refuse(reason: str) -> int:
    print(f"The API does not start: {reason}.", file=sys.stderr)
    return EX_CONFIG


def main() -> int:
    settings = begin("api")
    try:
        app = create_app(settings)
        if not settings.is_loopback:
            settings.check_bind(has_keys=any_key_exists(app.state.services))
    except ValueError as error:
        return _refuse(str(error))
    except DBAPIError as error:
        return _refuse(f"whether it has API keys cannot be read from its database ({type(error).__name__})")
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
