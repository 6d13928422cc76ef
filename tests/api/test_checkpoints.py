import shutil
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.services import Services
from tests.api.conftest import Row, check_problem
from tests.api.runs import Run
from tests.fixtures.sweep import sweep


@pytest.fixture
def run(services: Services, job: Row) -> Run:
    """A running attempt with the checkpoints of three steps, the first being the best."""
    run = Run(services, job["id"])
    run.train(3)
    for step in (1, 2, 3):
        (run.folder / f"checkpoints/training-{step}").mkdir(parents=True)
    return run


@pytest.fixture
def path(job: Row) -> str:
    return f"/v1/jobs/{job['id']}/checkpoints"


@pytest.fixture
def one(client: TestClient, run: Run, path: str) -> Row:
    """The checkpoint of the second step."""
    found: Row = next(row for row in client.get(path).json()["data"] if row["step"] == 2)
    return found


class TestList:
    def test_pages(self, client: TestClient, run: Run, path: str) -> None:
        rows = client.get(path).json()["data"]
        assert [row["step"] for row in rows] == sorted((row["step"] for row in rows), reverse=True)
        assert {row["best"] for row in rows} == {True, False}
        assert client.get(path, params={"limit": 1, "after": rows[0]["id"]}).json()["data"] == [rows[1]]
        check_problem(client.get(path, params={"after": "ckpt_0"}), 422, "unknown_cursor", "after")


class TestGet:
    def test_it_is_as_listed(self, client: TestClient, path: str, one: Row) -> None:
        assert client.get(f"{path}/{one['id']}").json() == one
        assert (one["pinned"], one["expires_at"]) == (False, None)

    def test_unknown(self, client: TestClient, path: str, run: Run) -> None:
        check_problem(client.get(f"{path}/ckpt_0"), 404, "not_found")

    def test_under_another_job(self, client: TestClient, path: str, one: Row, spec: Row) -> None:
        other = client.post("/v1/jobs", json=spec).json()["id"]
        for method in ("GET", "PATCH", "DELETE"):
            wrong = f"/v1/jobs/{other}/checkpoints/{one['id']}"
            body = {"pinned": True} if method == "PATCH" else None
            check_problem(client.request(method, wrong, json=body), 404, "not_found")
        assert client.get(f"{path}/{one['id']}").json() == one


class TestUpdate:
    def test_each_field_alone(self, client: TestClient, path: str, one: Row) -> None:
        address = f"{path}/{one['id']}"
        pinned = client.patch(address, json={"pinned": True})
        assert (pinned.status_code, pinned.json()) == (200, {**one, "pinned": True})
        later = client.patch(address, json={"expires_at": "2030-01-31T13:00:00.5+01:00"}).json()
        assert later == {**one, "pinned": True, "expires_at": "2030-01-31T12:00:00.500000Z"}
        assert client.patch(address, json={}).json() == later
        assert client.patch(address, json={"pinned": False, "expires_at": None}).json() == one
        assert client.get(address).json() == one

    @pytest.mark.parametrize(
        ("body", "code", "param"),
        [
            ({"pinned": True, "keep": True}, "unknown_field", "/keep"),
            ({"step": 3}, "unknown_field", "/step"),
            ({"pinned": "yes"}, "invalid_value", "/pinned"),
            ({"pinned": 1}, "invalid_value", "/pinned"),
            ({"expires_at": 1893499200}, "invalid_value", "/expires_at"),
            ({"expires_at": "1893499200"}, "invalid_value", "/expires_at"),
            ({"expires_at": "2030-01-31"}, "invalid_value", "/expires_at"),
            ({"expires_at": "2030-01-31T12:00:00"}, "invalid_value", "/expires_at"),
            ({"expires_at": "2030-02-31T12:00:00Z"}, "invalid_value", "/expires_at"),
            ({"expires_at": "9999-12-31T23:59:59-12:00"}, "invalid_value", "/expires_at"),
        ],
    )
    def test_bad_bodies_change_nothing(
        self, client: TestClient, path: str, one: Row, body: Any, code: str, param: str
    ) -> None:
        check_problem(client.patch(f"{path}/{one['id']}", json=body), 422, code, param)
        assert client.get(f"{path}/{one['id']}").json() == one

    def test_a_pin_that_comes_too_late(self, client: TestClient, run: Run, path: str, one: Row) -> None:
        """The trainer has removed the folder, and nobody has recorded it yet."""
        shutil.rmtree(run.folder / "checkpoints/training-2")
        response = client.patch(f"{path}/{one['id']}", json={"pinned": True, "expires_at": "2030-01-31T12:00:00Z"})
        check_problem(response, 409, "checkpoint_gone")
        assert response.headers["x-should-retry"] == "false"
        assert client.get(f"{path}/{one['id']}").json() == one, "and nothing of it was kept"

    def test_a_run_folder_on_another_machine_says_nothing(
        self, client: TestClient, run: Run, path: str, one: Row
    ) -> None:
        shutil.rmtree(run.folder)
        assert client.patch(f"{path}/{one['id']}", json={"pinned": True}).json()["pinned"] is True

    def test_what_is_being_deleted_is_not_found(self, client: TestClient, path: str, one: Row) -> None:
        client.delete(f"{path}/{one['id']}")
        check_problem(client.patch(f"{path}/{one['id']}", json={"pinned": True}), 404, "not_found")

    def test_one_that_has_expired_goes_with_the_next_sweep(
        self, client: TestClient, services: Services, run: Run, path: str, one: Row
    ) -> None:
        client.patch(f"{path}/{one['id']}", json={"expires_at": "2020-01-01T00:00:00Z"})
        assert [doomed.id for doomed in sweep(services.database).delete_checkpoints] == [one["id"]]
        check_problem(client.get(f"{path}/{one['id']}"), 404, "not_found")


class TestDelete:
    def test_it_is_gone_at_once_and_its_folder_follows(
        self, client: TestClient, services: Services, path: str, one: Row
    ) -> None:
        response = client.delete(f"{path}/{one['id']}")
        assert (response.status_code, response.content) == (204, b"")
        check_problem(client.get(f"{path}/{one['id']}"), 404, "not_found")
        check_problem(client.delete(f"{path}/{one['id']}"), 404, "not_found")
        assert [row["step"] for row in client.get(path).json()["data"]] == [3, 1]
        assert [doomed.id for doomed in sweep(services.database).delete_checkpoints] == [one["id"]]

    def test_pinned(self, client: TestClient, path: str, one: Row) -> None:
        client.patch(f"{path}/{one['id']}", json={"pinned": True})
        response = client.delete(f"{path}/{one['id']}")
        check_problem(response, 409, "pinned")
        assert response.headers["x-should-retry"] == "false"
        client.patch(f"{path}/{one['id']}", json={"pinned": False})
        assert client.delete(f"{path}/{one['id']}").status_code == 204

    def test_needed_by_a_fork(self, client: TestClient, job: Row, path: str, one: Row) -> None:
        fork = client.post(f"/v1/jobs/{job['id']}/fork", json={"checkpoint": one["id"]}).json()["id"]
        response = client.delete(f"{path}/{one['id']}")
        check_problem(response, 409, "in_use")
        assert response.headers["x-should-retry"] == "false"
        client.post(f"/v1/jobs/{fork}/cancel")
        assert client.delete(f"{path}/{one['id']}").status_code == 204

    def test_needed_by_an_attempt_that_has_none_of_its_own(
        self, client: TestClient, services: Services, run: Run, job: Row, path: str
    ) -> None:
        newest = client.get(path).json()["data"][0]["id"]
        run.stop()
        again = Run(services, job["id"])
        response = client.delete(f"{path}/{newest}")
        check_problem(response, 409, "in_use")
        assert response.headers["x-should-retry"] == "false"
        again.train(1)
        assert client.delete(f"{path}/{newest}").status_code == 204
