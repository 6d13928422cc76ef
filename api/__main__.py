"""`python -m api`: the API on uvicorn, at MINILLM_HOST and MINILLM_PORT."""

from __future__ import annotations

import sys

import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from api.app import create_app
from api.auth import any_key_exists
from store.settings import get_settings

# Long enough for a download's current chunk, short enough for event streams not to hold up a deploy.
_SHUTDOWN_SECONDS = 5
EX_CONFIG = 78  # sysexits.h


def _refuse(reason: str) -> int:
    print(f"The API does not start: {reason}.", file=sys.stderr)
    return EX_CONFIG


def _settings_at_fault(error: ValidationError) -> str:
    said = []
    for fault in error.errors():
        name = "".join(f"MINILLM_{str(part).upper()}: " for part in fault["loc"])
        said.append(name + fault["msg"].removeprefix("Value error, "))
    return "; ".join(said)


def main() -> int:
    try:
        settings = get_settings()
        app = create_app(settings)
        if not settings.is_loopback:
            settings.check_bind(has_keys=any_key_exists(app.state.services))
    except ValidationError as error:
        return _refuse(_settings_at_fault(error))
    except ValueError as error:
        return _refuse(str(error))
    except DBAPIError as error:
        return _refuse(f"whether it has API keys cannot be read from its database ({type(error).__name__})")
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
