"""Every program's log: what each line says, that a library's lines are like ours, and what no line ever says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SECRETS = {
    "secret_key": "an-hmac-key-of-the-tests",
    "bootstrap_api_key": 'bootstrap "quoted" of the tests',
    "database_url": "postgresql://user:p%40ssword@127.0.0.1/db",
    "broker_url": "redis://:short@127.0.0.1/0",
}


def logged(code: str, tmp_path: Path, **changes: Any) -> list[str]:
    """The lines that a program writes to standard error; it calls `code` after it has configured its log."""
    settings = {"log_format": "json", "data_dir": str(tmp_path), **SECRETS, **changes}
    program = f"""
import logging, sys, threading, warnings
import structlog
from store.logging import configure_logging
from store.settings import Settings
settings = Settings(**{settings!r})
configure_logging(settings, program="test")
configure_logging(settings, program="test")
log = logging.getLogger("tests.here")
{code}
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert ended.stdout == ""
    return ended.stderr.splitlines()


def test_a_line_of_json(tmp_path: Path) -> None:
    (line,) = logged('log.warning("took %d of %s", 2, "three")', tmp_path)
    said = json.loads(line)
    assert said.pop("timestamp").endswith("Z")
    assert said == {"event": "took 2 of three", "level": "warning", "logger": "tests.here", "program": "test"}


def test_what_is_bound_is_in_every_line(tmp_path: Path) -> None:
    code = """
with structlog.contextvars.bound_contextvars(job_id="job_x", attempt=2, request_id="req_y"):
    log.info("one")
    logging.getLogger("uvicorn.error").info("two")
    structlog.get_logger("other").info("three", bytes=3)
log.info("four")
"""
    lines = [json.loads(line) for line in logged(code, tmp_path)]
    assert [line["event"] for line in lines] == ["one", "two", "three", "four"]
    bound = {"job_id": "job_x", "attempt": 2, "request_id": "req_y"}
    assert all(bound.items() <= line.items() for line in lines[:3])
    assert lines[2]["bytes"] == 3 and "job_id" not in lines[3]


def test_libraries_are_heard_like_ourselves(tmp_path: Path) -> None:
    code = """
from celery import Celery
app = Celery("x", set_as_current=False)
app.log.setup(loglevel="DEBUG")
for name in ("celery.worker", "uvicorn.error", "sqlalchemy.engine", "alembic.runtime", "kombu"):
    logging.getLogger(name).info("information")
    logging.getLogger(name).warning("warning")
warnings.warn("deprecated")
"""
    lines = [json.loads(line) for line in logged(code, tmp_path)]
    assert [line["logger"] for line in lines if line["event"] == "information"] == [
        "celery.worker",
        "uvicorn.error",
        "kombu",
    ]
    assert sum(line["event"] == "warning" for line in lines) == 5
    assert lines[-1]["logger"] == "py.warnings"


def test_an_end_by_an_exception_is_a_line_too(tmp_path: Path) -> None:
    code = """
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
here = "a local value"
raise ValueError("the end")
"""
    lines = [json.loads(line) for line in logged(code, tmp_path)]
    assert [line["level"] for line in lines] == ["critical"] * 2
    assert "ZeroDivisionError" in lines[0]["exception"] and "ValueError: the end" in lines[1]["exception"]
    assert "a local value" not in lines[1]["exception"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_secret_is_ever_said(tmp_path: Path, log_format: str) -> None:
    code = f"""
secrets = {SECRETS!r}
for name, value in secrets.items():
    log.info("%s is %s", name, value)
    log.info("repr", extra={{"value": repr(value)}})
    structlog.get_logger().info("field", value=[value])
    try:
        raise ValueError(value)
    except ValueError:
        log.exception("failed")
log.info("mllm_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef for p@ssword of redis://user:x@host/0")
"""
    text = "\n".join(logged(code, tmp_path, log_format=log_format))
    for secret in ("an-hmac-key", "bootstrap", "p%40ss", "p@ss", ":short@", "0123456789AB", "user:x@"):
        assert secret not in text.replace("bootstrap_api_key", ""), secret
    assert "mllm_***" in text and "redis://user:***@host" in text


def test_a_caller_cannot_forge_a_line_for_people(tmp_path: Path) -> None:
    lines = logged('log.info("GET /%s", "x\\nfake \\x1b[2J line")', tmp_path, log_format="console")
    assert len(lines) == 1 and "\\n" in lines[0] and "\x1b[2J" not in lines[0]


def test_the_level_counts(tmp_path: Path) -> None:
    assert logged('log.info("x"); structlog.get_logger().info("y")', tmp_path, log_level="WARNING") == []


def test_handlers_of_others_stay(tmp_path: Path) -> None:
    code = """
other = logging.NullHandler()
logging.getLogger().addHandler(other)
configure_logging(settings, program="test")
assert other in logging.getLogger().handlers and len(logging.getLogger().handlers) == 2
"""
    assert logged(code, tmp_path) == []
