import csv
import io
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.services import Services
from store.db.paging import Page
from store.jobs.metrics import MetricRepository, StepMetrics
from tests.api.conftest import Row, check_problem
from tests.api.runs import Run


@pytest.fixture
def path(services: Services, job: Row) -> str:
    Run(services, job["id"]).train(4)
    return f"/v1/jobs/{job['id']}/metrics"


def test_json(client: TestClient, path: str) -> None:
    points = client.get(path).json()["data"]
    assert [point["step"] for point in points] == [1, 2, 3, 4]
    assert points[1]["values"] == {"loss": 0.5, "=reverse_kl": 2.0}
    assert (points[1]["phase"], points[1]["attempt"]) == ("training", 1)


@pytest.mark.parametrize(
    ("params", "steps", "names"),
    [
        ({"names": "loss"}, [1, 2, 3, 4], {"loss"}),
        ({"since_step": 3}, [3, 4], {"loss", "=reverse_kl"}),
        ({"points": 2, "names": "loss"}, [1, 4], {"loss"}),
        ({"names": "nothing"}, [], set()),
        ({"phase": "student_sft"}, [], set()),
    ],
)
def test_choice(client: TestClient, path: str, params: Row, steps: list[int], names: set[str]) -> None:
    points = client.get(path, params=params).json()["data"]
    assert [point["step"] for point in points] == steps
    assert {name for point in points for name in point["values"]} == names


def test_csv(client: TestClient, path: str) -> None:
    response = client.get(path, headers={"Accept": "text/csv"})
    assert response.headers["content-type"].startswith("text/csv")
    head, *rows = csv.reader(io.StringIO(response.text))
    assert head == ["attempt", "phase", "step", "created_at", "'=reverse_kl", "loss"], "no cell is a formula"
    assert [(row[2], row[4], row[5]) for row in rows][:2] == [("1", "2.0", "1.0"), ("2", "2.0", "0.5")]


def test_jsonl(client: TestClient, path: str) -> None:
    response = client.get(path, headers={"Accept": "application/jsonl"})
    assert [json.loads(line)["step"] for line in response.text.splitlines()] == [1, 2, 3, 4]


def test_another_form(client: TestClient, path: str) -> None:
    check_problem(client.get(path, headers={"Accept": "image/png"}), 406, "not_acceptable")


def test_pages(client: TestClient, path: str) -> None:
    first = client.get(path, params={"limit": 3}).json()
    assert (len(first["data"]), first["has_more"], first["last_id"]) == (3, True, "training.3")
    rest = client.get(path, params={"limit": 3, "after": first["last_id"]}).json()
    assert (len(rest["data"]), rest["has_more"], rest["last_id"]) == (1, False, "training.4")
    assert first["data"] + rest["data"] == client.get(path).json()["data"]
    lines = client.get(path, params={"after": "training.3"}, headers={"Accept": "application/jsonl"}).text.splitlines()
    assert [json.loads(line) for line in lines] == rest["data"]


@pytest.mark.parametrize("cursor", ["3", "training", "training.x", "training." + "9" * 30, ".3"])
def test_a_cursor_that_is_none(client: TestClient, path: str, cursor: str) -> None:
    check_problem(client.get(path, params={"after": cursor}), 422, "unknown_cursor", "after")


@pytest.mark.parametrize("accept", ["text/csv", "application/jsonl"])
def test_a_download_is_read_by_pages(
    client: TestClient, path: str, accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = client.get(path, headers={"Accept": accept}).text
    pages: list[int] = []
    series = MetricRepository.series

    def counted(*given: Any, **options: Any) -> Page[StepMetrics]:
        found = series(*given, **options)
        pages.append(len(found.items))
        return found

    monkeypatch.setattr(MetricRepository, "series", counted)
    monkeypatch.setattr("api.metrics.service.PAGE_STEPS", 1)
    assert client.get(path, headers={"Accept": accept}).text == whole
    assert pages == [1, 1, 1, 1]
