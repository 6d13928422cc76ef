"""`python -m api keys`: the way into a service from its machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from store.settings import Settings

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(settings: Settings) -> Run:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MINILLM_")}
    environment = {**kept, "MINILLM_DATA_DIR": str(settings.data_dir), "PYTHONPATH": str(Path(__file__).parents[3])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "api", "keys", *arguments]
        return subprocess.run(command, env=environment, cwd=settings.data_dir, capture_output=True, text=True)

    return run


def test_a_key_that_opens(run: Run, client: TestClient) -> None:
    assert client.get("/v1/jobs").status_code == 200
    made = run("create", "--admin", "--name", "ops")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert token.startswith("mllm_") and token not in made.stderr
    assert client.get("/v1/jobs").status_code == 401
    client.headers["Authorization"] = f"Bearer {token}"
    (row,) = client.get("/v1/api_keys").json()["data"]
    assert (row["name"], row["owner_id"], row["scopes"]) == ("ops", "local", ["admin"])

    listed = run("list").stdout
    assert row["id"] in listed and "valid" in listed and token not in listed
    assert run("revoke", row["id"]).returncode == 0
    assert client.get("/v1/jobs").status_code == 401
    assert run("list").stdout == "" and "revoked" in run("list", "--all").stdout


def test_what_it_refuses(run: Run, settings: Settings, client: TestClient) -> None:
    assert "--admin" in run("create", "--owner", "team").stderr
    assert client.get("/v1/jobs").status_code == 200, "a service that nobody could administer was not made of it"
    gone = run("revoke", "key_none")
    assert (gone.returncode, gone.stdout) == (65, "") and "keys list" in gone.stderr
    for wrong in (["--owner", "a/b"], ["--name", ""], ["--days", "0"], ["--days", "1e9"], ["--scope", "root"]):
        assert run("create", "--admin", *wrong).returncode == 2
    (settings.data_dir / "minillm.db").unlink()
    unmade = run("create", "--admin")
    assert (unmade.returncode, unmade.stdout) == (69, "") and "python -m migrations" in unmade.stderr


def test_the_way_back_in(run: Run, client: TestClient, settings: Settings) -> None:
    first = client.post("/v1/api_keys", json={"name": "first", "scopes": ["admin"]}).json()
    client.headers["Authorization"] = f"Bearer {first['key']}"
    other = client.post("/v1/api_keys", json={"name": "team", "owner_id": "team"}).json()
    assert client.delete(f"/v1/api_keys/{first['id']}").status_code == 204
    client.headers["Authorization"] = f"Bearer {other['key']}"
    assert client.get("/v1/jobs").status_code == 200
    assert client.post("/v1/api_keys", json={"name": "x", "scopes": ["admin"]}).status_code == 403
    made = run("create", "--admin", "--days", "1")
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {made.stdout.strip()}"}) as again:
        rows = again.get("/v1/api_keys").json()["data"]
        assert [row["name"] for row in rows] == ["made on the command line", "team", "first"]
        assert rows[0]["expires_at"] is not None
