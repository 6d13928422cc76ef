"""The client meets a socket, not a stand-in: `service` is the API itself behind one, with a store that the test plays
the worker in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from api.app import create_app
from store.db.database import Database
from store.settings import Settings
from tests.api.model_folders import write_model
from tests.client.played import SPEC, Service
from tests.fixtures.server import ServerThread


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serve an ASGI app for the length of the test and return its address."""
    running: list[ServerThread] = []

    def start(app: Any) -> str:
        server = ServerThread(app)
        server.start()
        running.append(server)
        return server.url

    yield start
    for server in running:
        server.stop()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own service must never be the one that a test talks to."""
    for name in ("MINILLM_URL", "MINILLM_API_KEY", "MINILLM_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def quiet() -> Iterator[None]:
    """The service in this process logs as its own process would: never to the standard output of a command."""
    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())
    yield
    structlog.configure(**before)


@pytest.fixture
def service(
    tmp_path: Path, sqlite_template: Path, serve: Callable[[Any], str], quiet: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Service]:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(sqlite_template, data / "minillm.db")
    # No broker answers there: jobs are announced to nobody, and nothing must wait for that.
    settings = Settings(data_dir=data, broker_url="redis+socket:///nonexistent/socket")
    settings.models_dir.mkdir()
    write_model(settings.models_dir, "teacher")
    work = tmp_path / "work"
    work.mkdir()
    (work / "spec.yaml").write_text(SPEC)
    rows = [{"instruction": f"Name number {n}.", "output": "the cat"} for n in range(40)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    database = Database(settings.database_url)
    url = serve(create_app(settings))
    monkeypatch.setenv("MINILLM_URL", url)
    yield Service(url, settings, database, work / "spec.yaml")
    database.dispose()
