from starlette.testclient import TestClient

from api.services import Services
from tests.api.conftest import Row, check_problem
from tests.api.runs import Run


def test_attempts(client: TestClient, services: Services, job: Row) -> None:
    path = f"/v1/jobs/{job['id']}/attempts"
    assert client.get(path).json()["data"] == []
    Run(services, job["id"]).fail()
    (attempt,) = client.get(path).json()["data"]
    assert (attempt["attempt"], attempt["state"], attempt["exit_code"]) == (1, "failed", 64)
    assert attempt["failure"]["category"] == "user"
    assert client.get(f"{path}/1").json() == attempt
    check_problem(client.get(f"{path}/2"), 404, "not_found")
    check_problem(client.get(f"{path}/x"), 422, "invalid_value", "number")
