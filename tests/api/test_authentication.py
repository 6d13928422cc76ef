"""Who may do what: every route is closed once a key exists, and nobody finds what is someone else's."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import text
from starlette.testclient import TestClient

from api.app import create_app
from api.http.middleware.authentication import PUBLIC_PATHS
from api.services import Services
from store.db.database import Database
from store.settings import Settings
from tests.api.conftest import BOOTSTRAP, Row, check_problem, upload
from tests.api.http.test_openapi import ROUTES
from tests.api.runs import Run
from tests.worker.conftest import wait_until


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def address(route: APIRoute, **ids: str) -> str:
    path = route.path.replace(":path", "")
    for name in ("job_id", "checkpoint_id", "file_id", "model_id", "worker_id", "key_id", "number", "name"):
        path = path.replace("{" + name + "}", ids.get(name, "1"))
    return path


WALK = [(method, route) for route in ROUTES for method in sorted(route.methods)]


@pytest.mark.parametrize(("method", "route"), WALK, ids=[f"{method} {route.path}" for method, route in WALK])
def test_every_route_needs_a_key(locked_client: TestClient, method: str, route: APIRoute) -> None:
    for headers in ({}, bearer("mllm_wrong"), {"Authorization": f"Basic {BOOTSTRAP}"}):
        response = locked_client.request(method, address(route), headers=headers)
        if address(route) in PUBLIC_PATHS:
            assert response.status_code == 200
        elif method == "HEAD":
            assert response.status_code == 401
        else:
            check_problem(response, 401, "unauthorized")
            assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/nothing", "/v1", "/v1/jobs/", "//healthz", "/healthz/"])
def test_so_does_everything_else(locked_client: TestClient, path: str) -> None:
    assert locked_client.get(path).status_code == 401


def test_the_bootstrap_key_opens(locked_client: TestClient) -> None:
    assert locked_client.get("/v1/jobs", headers=bearer(BOOTSTRAP)).status_code == 200
    assert locked_client.get("/v1/jobs", headers={"Authorization": f"bearer  {BOOTSTRAP}"}).status_code == 200


def test_an_upload_without_a_key_is_not_read(locked_client: TestClient) -> None:
    read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 1000

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    check_problem(locked_client.post("/v1/files", content=chunks(), headers=headers), 401, "unauthorized")
    assert read <= 100


class TestWithoutKeys:
    def test_the_local_user_needs_none(self, client: TestClient) -> None:
        assert client.get("/v1/jobs").status_code == 200
        assert client.get("/v1/jobs", headers=bearer("sk-anything")).status_code == 200

    def test_beyond_the_loopback_nobody_is_let_in(self, make_settings: Callable[..., Settings]) -> None:
        with TestClient(create_app(make_settings(host="0.0.0.0", secret_key="s" * 32))) as client:
            check_problem(client.get("/v1/jobs"), 401, "unauthorized")


class TestKeys:
    @pytest.fixture
    def admin(self, client: TestClient) -> dict[str, str]:
        response = client.post("/v1/api_keys", json={"name": "first", "scopes": ["admin"]})
        assert response.status_code == 201, response.text
        return bearer(response.json()["key"])

    def test_the_first_key_closes_the_service(self, client: TestClient, admin: dict[str, str]) -> None:
        check_problem(client.get("/v1/jobs"), 401, "unauthorized")
        assert client.get("/v1/jobs", headers=admin).status_code == 200

    def test_the_first_must_be_an_admins(self, client: TestClient) -> None:
        check_problem(client.post("/v1/api_keys", json={"name": "first"}), 422, "invalid_value", "/scopes")
        assert client.get("/v1/jobs").status_code == 200

    def test_it_is_shown_once_and_not_kept(self, client: TestClient, admin: dict[str, str], settings: Settings) -> None:
        key = admin["Authorization"].removeprefix("Bearer ")
        (listed,) = client.get("/v1/api_keys", headers=admin).json()["data"]
        assert "key" not in listed and listed["name"] == "first" and key.startswith(listed["hint"])
        with sqlite3.connect(settings.data_dir / "minillm.db") as database:
            dump = "\n".join(database.iterdump())
        assert key not in dump and "first" in dump

    def test_only_admins_handle_keys(self, client: TestClient, admin: dict[str, str]) -> None:
        made = client.post("/v1/api_keys", json={"name": "team", "owner_id": "team"}, headers=admin).json()
        team = bearer(made["key"])
        assert client.get("/v1/jobs", headers=team).status_code == 200
        for method, path in (
            ("POST", "/v1/api_keys"),
            ("GET", "/v1/api_keys"),
            ("DELETE", f"/v1/api_keys/{made['id']}"),
        ):
            json = {"name": "x"} if method == "POST" else None
            check_problem(client.request(method, path, json=json, headers=team), 403, "admin_only")
        check_problem(client.post("/v1/workers/wrk_0/drain", headers=team), 403, "admin_only")
        check_problem(client.post("/v1/workers/wrk_0/undrain", headers=team), 403, "admin_only")

    def test_a_revoked_key_fails_at_once(self, client: TestClient, admin: dict[str, str]) -> None:
        made = client.post("/v1/api_keys", json={"name": "team"}, headers=admin).json()
        team = bearer(made["key"])
        assert client.get("/v1/jobs", headers=team).status_code == 200
        assert client.delete(f"/v1/api_keys/{made['id']}", headers=admin).status_code == 204
        check_problem(client.get("/v1/jobs", headers=team), 401, "unauthorized")
        shown = client.get(f"/v1/api_keys/{made['id']}", headers=admin).json()
        assert shown["revoked_at"] is not None and shown["last_used_at"] is not None

    @pytest.mark.parametrize(
        ("wanted", "param"),
        [
            ({"name": "x", "scopes": ["root"]}, "/scopes/0"),
            ({"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
            ({"name": "x", "expires_at": "2040-01-01T00:00:00"}, "/expires_at"),
            ({"name": ""}, "/name"),
            ({"name": "x", "owner_id": "a/b"}, "/owner_id"),
        ],
    )
    def test_bad_keys(self, client: TestClient, admin: dict[str, str], wanted: Row, param: str) -> None:
        check_problem(client.post("/v1/api_keys", json=wanted, headers=admin), 422, "invalid_value", param)


class TestOnceThereWasAKey:
    """Nothing that becomes of the keys opens the service to those without one, in a new process either."""

    @staticmethod
    def make(client: TestClient) -> dict[str, str]:
        made = client.post("/v1/api_keys", json={"name": "only", "scopes": ["admin"]})
        assert made.status_code == 201, made.text
        return bearer(made.json()["key"])

    @staticmethod
    def sql(settings: Settings, statement: str) -> None:
        database = Database(settings.database_url)
        with database.write() as session:
            session.execute(text(statement))
        database.dispose()

    @staticmethod
    def closed(settings: Settings, *earlier: TestClient, headers: dict[str, str] | None = None) -> bool:
        with TestClient(create_app(settings)) as new:
            return all(client.get("/v1/jobs", headers=headers).status_code == 401 for client in (*earlier, new))

    @pytest.mark.parametrize(
        "fate",
        [
            "UPDATE api_keys SET expires_at = '2020-01-01 00:00:00.000000'",
            "UPDATE api_keys SET revoked_at = created_at",
            "DELETE FROM api_keys",
        ],
    )
    def test_it_stays_closed(self, client: TestClient, settings: Settings, fate: str) -> None:
        old = self.make(client)
        self.sql(settings, fate)
        assert self.closed(settings, client)
        assert self.closed(settings, client, headers=old)

    def test_also_where_the_only_one_is_revoked_by_itself(self, client: TestClient, settings: Settings) -> None:
        old = self.make(client)
        (key,) = client.get("/v1/api_keys", headers=old).json()["data"]
        assert client.delete(f"/v1/api_keys/{key['id']}", headers=old).status_code == 204
        assert self.closed(settings, client, headers=old)

    def test_also_with_a_database_of_before(self, client: TestClient, settings: Settings) -> None:
        file = settings.data_dir / "minillm.db"
        with sqlite3.connect(file) as source, sqlite3.connect(settings.data_dir / "backup.db") as copy:
            source.backup(copy)
        self.make(client)
        with sqlite3.connect(settings.data_dir / "backup.db") as source, sqlite3.connect(file) as restored:
            source.backup(restored)
        assert self.closed(settings)

    def test_also_with_a_new_data_folder(self, client: TestClient, settings: Settings, tmp_path: Path) -> None:
        self.make(client)
        moved = settings.model_copy(update={"data_dir": tmp_path / "new"})
        assert self.closed(moved)
        self.sql(settings, "DELETE FROM api_keys")
        assert self.closed(moved), "it has seen that there was one"

    def test_also_where_the_bootstrap_key_is_no_longer_set(self, make_settings: Callable[..., Settings]) -> None:
        with TestClient(create_app(make_settings(bootstrap_api_key=BOOTSTRAP))):
            pass
        assert self.closed(make_settings(), headers=bearer(BOOTSTRAP))

    def test_a_key_of_another_machine_closes_it_too(
        self, client: TestClient, settings: Settings, tmp_path: Path
    ) -> None:
        assert client.get("/v1/jobs").status_code == 200
        other = settings.model_copy(update={"data_dir": tmp_path / "other"})
        with TestClient(create_app(other)) as elsewhere:
            self.make(elsewhere)
        wait_until(lambda: client.get("/v1/jobs").status_code == 401, 10)


class TestOwnership:
    """Every route with an id answers another owner 404, as if there were nothing."""

    @pytest.fixture
    def owned(self, app: FastAPI, client: TestClient, services: Services, spec: Row) -> dict[str, str]:
        job = client.post("/v1/jobs", json=spec).json()["id"]
        run = Run(services, job)
        run.train(1)
        (run.folder / "stderr.log").write_text("log")
        run.succeed()
        return {
            "job_id": job,
            "checkpoint_id": client.get(f"/v1/jobs/{job}/checkpoints").json()["data"][0]["id"],
            "file_id": spec["dataset"]["file"],
            "model_id": client.get(f"/v1/jobs/{job}").json()["student_model"],
            "name": "config.json",
        }

    def test_walk(self, client: TestClient, owned: dict[str, str]) -> None:
        admin = bearer(client.post("/v1/api_keys", json={"name": "a", "scopes": ["admin"]}).json()["key"])
        stranger = bearer(
            client.post("/v1/api_keys", json={"name": "b", "owner_id": "stranger"}, headers=admin).json()["key"]
        )
        bodies: dict[str, Any] = {
            "jobs_update": {"name": "mine"},
            "jobs_fork": {},
            "checkpoints_update": {"pinned": True},
        }
        walked = 0
        for method, route in WALK:
            if not any("{" + name + "}" in route.path for name in ("job_id", "file_id", "model_id")):
                continue
            walked += 1
            headers = {**stranger, "If-Match": "*"}
            response = client.request(method, address(route, **owned), headers=headers, json=bodies.get(route.name))
            assert response.status_code == 404, f"{method} {route.path}: {response.status_code} {response.text}"
        assert walked >= 20
        for path in ("/v1/jobs", "/v1/files", "/v1/models?kind=student"):
            assert client.get(path, headers=stranger).json()["data"] == []
            assert len(client.get(path, headers=admin).json()["data"]) == 1

    def test_a_strangers_file_and_model_cannot_be_used(
        self, client: TestClient, owned: dict[str, str], spec: Row
    ) -> None:
        admin = bearer(client.post("/v1/api_keys", json={"name": "a", "scopes": ["admin"]}).json()["key"])
        made = client.post("/v1/api_keys", json={"name": "b", "owner_id": "stranger"}, headers=admin).json()
        client.headers.update(bearer(made["key"]))
        check_problem(client.post("/v1/jobs", json=spec), 422, "file_not_found", "/dataset/file")
        own = upload(client).json()["id"]
        theft = {**spec, "dataset": {"file": own}, "teacher": {"model": owned["model_id"]}}
        check_problem(client.post("/v1/jobs", json=theft), 422, "model_not_found", "/teacher/model")
