"""Logging of every program, configured here and nowhere else: one structlog line for each record, a library's too.

Modules log through the standard library (``logging.getLogger(__name__)``). What a line is about beyond its words is
bound once and then in every line of the same request, task or thread::

    with structlog.contextvars.bound_contextvars(job_id=job.id, attempt=number):
        ...

A new thread begins with nothing bound: start it with ``contextvars.copy_context().run``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from celery.signals import setup_logging
from structlog.typing import EventDict, Processor, WrappedLogger

from store.settings import Settings

_QUIET = ("sqlalchemy", "alembic")
"""Libraries heard from WARNING on at any level: their statements hold what callers sent."""
_TRACES = ("exception", "stack", "exc_info")
_SHORTEST_SECRET = 8
"""A shorter password would be found within ordinary words; in a URL it is hidden all the same."""
_HIDDEN = "***"


def configure_logging(settings: Settings, *, program: str) -> None:
    """Send every record of this process to standard error, as `log_format` and `log_level` say. Again is no error.

    Each line says the program, the logger and what is bound (`request_id`, `job_id`, `attempt`). The settings'
    secrets, API keys and passwords in URLs never appear.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        _program(program),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    render: list[Processor]
    if settings.log_format == "json":
        # As text: structured tracebacks would show the values of local variables.
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        plain = structlog.dev.plain_traceback
        render = [_one_line, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    handler = _Handler()
    handler.setFormatter(
        _Formatter(
            secrets=_secrets(settings),
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    for earlier in [other for other in root.handlers if isinstance(other, _Handler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(settings.log_level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    setup_logging.connect(_leave_it, weak=False)
    sys.excepthook = _uncaught
    threading.excepthook = lambda fault: _uncaught(fault.exc_type, fault.exc_value, fault.exc_traceback)


class _Handler(logging.Handler):
    """Writes to whatever standard error is by then. A class of its own: handlers of others stay where they are."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # as the handlers of the standard library: a line that cannot be written ends nothing
            self.handleError(record)


class _Formatter(structlog.stdlib.ProcessorFormatter):
    def __init__(self, *, secrets: set[str], **options: Any) -> None:
        super().__init__(**options)
        # The longest first, where one secret is a part of another.
        known = [re.escape(secret) for secret in sorted(secrets, key=len, reverse=True)]
        url_password = r"(?<=://)([^\s:/@]*):[^\s/@]+@"
        self._secret = re.compile("|".join([url_password, r"(mllm_)[0-9A-Za-z]{8,}", *known]))

    def format(self, record: logging.LogRecord) -> str:
        return self._secret.sub(_hide, super().format(record))


def _hide(found: re.Match[str]) -> str:
    if found[1] is not None:
        return f"{found[1]}:{_HIDDEN}@"
    return (found[2] or "") + _HIDDEN


def _secrets(settings: Settings) -> set[str]:
    """What must never be in a line, in each spelling that it may have there."""
    given = [secret.get_secret_value() for secret in (settings.secret_key, settings.bootstrap_api_key) if secret]
    for url in (settings.database_url, settings.broker_url):
        password = urlsplit(url).password
        given += [password, unquote(password)] if password else []
    spelt = {form for secret in given for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1])}
    return {secret for secret in spelt if len(secret) >= _SHORTEST_SECRET}


def _program(name: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["program"] = name
        event.pop("color_message", None)  # uvicorn's, the event once more with escapes for a terminal
        return event

    return add


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Nothing that a caller named can begin a line of its own or steer a terminal."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable() and key not in _TRACES:
            event[key] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return event


def _leave_it(**_: Any) -> None:
    """Connected to Celery's signal, so that Celery leaves logging as it is."""


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    if issubclass(kind, (KeyboardInterrupt, SystemExit)):
        sys.__excepthook__(kind, error or kind(), trace)
        return
    logging.getLogger(__name__).critical("not caught", exc_info=(kind, error or kind(), trace))
