import json

import anyio.to_thread
import pytest
from starlette.testclient import TestClient

from api.services import Services
from tests.api.conftest import Row, check_problem
from tests.api.runs import Run


def parse_stream(text: str) -> list[tuple[str, str, Row]]:
    """(id, event, data) of every event of a server-sent stream."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return found


def test_list(client: TestClient, services: Services, job: Row) -> None:
    Run(services, job["id"]).train(1)
    path = f"/v1/jobs/{job['id']}/events"
    body = client.get(path).json()
    assert [event["seq"] for event in body["data"]] == list(range(1, len(body["data"]) + 1))
    assert [event["code"] for event in body["data"] if event["type"] == "state"] == [
        "queued", "starting", "running"
    ]  # fmt: skip
    first = client.get(path, params={"limit": 2}).json()
    assert first["has_more"] and first["last_id"] == "2"
    rest = client.get(path, params={"after": first["last_id"]}).json()
    assert first["data"] + rest["data"] == body["data"]


def test_stream_to_the_end(client: TestClient, services: Services, job: Row) -> None:
    run = Run(services, job["id"])
    run.train(1)
    run.succeed()
    path = f"/v1/jobs/{job['id']}/events"
    response = client.get(path, headers={"Accept": "text/event-stream"})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = parse_stream(response.text)
    listed = client.get(path).json()["data"]
    assert [data for _, _, data in events] == listed
    assert [id for id, _, _ in events] == [str(event["seq"]) for event in listed]
    assert events[-1][2]["code"] == "succeeded"


def test_stream_goes_on_where_it_broke(client: TestClient, job: Row) -> None:
    client.post(f"/v1/jobs/{job['id']}/cancel")
    path = f"/v1/jobs/{job['id']}/events"
    last = client.get(path).json()["data"][-1]["seq"]
    resumed = client.get(path, headers={"Accept": "text/event-stream", "Last-Event-ID": str(last - 1)})
    assert [id for id, _, _ in parse_stream(resumed.text)] == [str(last)]
    bad = client.get(path, headers={"Accept": "text/event-stream", "Last-Event-ID": "evt_x"})
    check_problem(bad, 422, "invalid_value", "Last-Event-ID")


def test_stream_waits_for_what_comes(client: TestClient, job: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is cancelled at the stream's first wait, so that the stream must have waited to tell of it."""

    async def cancel_meanwhile(_: float) -> None:
        monkeypatch.setattr("api.events.stream.asyncio.sleep", _no_wait)
        await anyio.to_thread.run_sync(client.post, f"/v1/jobs/{job['id']}/cancel")

    async def _no_wait(_: float) -> None:
        return None

    monkeypatch.setattr("api.events.stream.asyncio.sleep", cancel_meanwhile)
    response = client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"})
    assert parse_stream(response.text)[-1][2]["code"] == "cancelled"
