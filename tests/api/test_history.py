import csv
import io
import json
import shutil
from typing import Any

import anyio.to_thread
import pytest
from starlette.testclient import TestClient

from api.history.streams import accepted
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


class TestEvents:
    def test_list(self, client: TestClient, services: Services, job: Row) -> None:
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

    def test_stream_to_the_end(self, client: TestClient, services: Services, job: Row) -> None:
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

    def test_stream_goes_on_where_it_broke(self, client: TestClient, job: Row) -> None:
        client.post(f"/v1/jobs/{job['id']}/cancel")
        path = f"/v1/jobs/{job['id']}/events"
        last = client.get(path).json()["data"][-1]["seq"]
        resumed = client.get(path, headers={"Accept": "text/event-stream", "Last-Event-ID": str(last - 1)})
        assert [id for id, _, _ in parse_stream(resumed.text)] == [str(last)]
        bad = client.get(path, headers={"Accept": "text/event-stream", "Last-Event-ID": "evt_x"})
        check_problem(bad, 422, "invalid_value", "Last-Event-ID")

    def test_stream_waits_for_what_comes(self, client: TestClient, job: Row, monkeypatch: pytest.MonkeyPatch) -> None:
        """The job is cancelled at the stream's first wait, so that the stream must have waited to tell of it."""

        async def cancel_meanwhile(_: float) -> None:
            monkeypatch.setattr("api.history.streams.asyncio.sleep", _no_wait)
            await anyio.to_thread.run_sync(client.post, f"/v1/jobs/{job['id']}/cancel")

        async def _no_wait(_: float) -> None:
            return None

        monkeypatch.setattr("api.history.streams.asyncio.sleep", cancel_meanwhile)
        response = client.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"})
        assert parse_stream(response.text)[-1][2]["code"] == "cancelled"


class TestMetrics:
    @pytest.fixture
    def path(self, services: Services, job: Row) -> str:
        Run(services, job["id"]).train(4)
        return f"/v1/jobs/{job['id']}/metrics"

    def test_json(self, client: TestClient, path: str) -> None:
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
    def test_choice(self, client: TestClient, path: str, params: Row, steps: list[int], names: set[str]) -> None:
        points = client.get(path, params=params).json()["data"]
        assert [point["step"] for point in points] == steps
        assert {name for point in points for name in point["values"]} == names

    def test_csv(self, client: TestClient, path: str) -> None:
        response = client.get(path, headers={"Accept": "text/csv"})
        assert response.headers["content-type"].startswith("text/csv")
        head, *rows = csv.reader(io.StringIO(response.text))
        assert head == ["attempt", "phase", "step", "created_at", "'=reverse_kl", "loss"], "no cell is a formula"
        assert [(row[2], row[4], row[5]) for row in rows][:2] == [("1", "2.0", "1.0"), ("2", "2.0", "0.5")]

    def test_jsonl(self, client: TestClient, path: str) -> None:
        response = client.get(path, headers={"Accept": "application/jsonl"})
        assert [json.loads(line)["step"] for line in response.text.splitlines()] == [1, 2, 3, 4]

    def test_another_form(self, client: TestClient, path: str) -> None:
        check_problem(client.get(path, headers={"Accept": "image/png"}), 406, "not_acceptable")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "a/b"),
        ("*/*", "a/b"),
        ("text/csv", "text/csv"),
        ("text/*", "text/csv"),
        ("a/b;q=0.5, text/csv", "text/csv"),
        ("text/csv;q=0, */*", "a/b"),
        ("a/b;q=0", None),
        ("text/csv;q=x", None),
    ],
)
def test_accept(header: str | None, expected: str | None) -> None:
    assert accepted(header, ("a/b", "text/csv")) == expected


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


class TestLogs:
    TEXT = "loading ✓\n\x1b[31mred\x1b[0m\nstep 1\n"

    @pytest.fixture
    def run(self, services: Services, job: Row) -> Run:
        run = Run(services, job["id"])
        (run.folder / "stderr.log").write_text(self.TEXT)
        (run.folder / "stdout.log").write_text("out\n")
        return run

    def test_not_started(self, client: TestClient, job: Row) -> None:
        check_problem(client.get(f"/v1/jobs/{job['id']}/logs"), 404, "no_log")

    def test_pieces(self, client: TestClient, run: Run, job: Row) -> None:
        path = f"/v1/jobs/{job['id']}/logs"
        body = client.get(path).json()
        assert body["text"] == "loading ✓\nred\nstep 1\n", "without what drives terminals"
        assert (body["source"], body["attempt"], body["size"]) == ("file", 1, len(self.TEXT.encode()))
        assert body["next_offset"] == body["size"]
        assert client.get(path, params={"offset": -7}).json()["text"] == "step 1\n"
        assert client.get(path, params={"stream": "stdout"}).json()["text"] == "out\n"
        with (run.folder / "stderr.log").open("a") as log:
            log.write("step 2\n")
        assert client.get(path, params={"offset": body["next_offset"]}).json()["text"] == "step 2\n"
        check_problem(client.get(path, params={"attempt": 2}), 404, "not_found")
        check_problem(client.get(path, params={"stream": "../../spec"}), 422, "invalid_value", "stream")

    def test_text_and_ranges(self, client: TestClient, run: Run, job: Row) -> None:
        path = f"/v1/jobs/{job['id']}/logs"
        whole = client.get(path, headers={"Accept": "text/plain"})
        assert len(whole.content) == len(self.TEXT.encode()) and b"\x1b" not in whole.content
        part = client.get(path, headers={"Accept": "text/plain", "Range": "bytes=0-6"})
        assert (part.status_code, part.text) == (206, "loading")
        assert part.headers["content-range"] == f"bytes 0-6/{len(whole.content)}"
        past = client.get(path, headers={"Accept": "text/plain", "Range": "bytes=1000-"})
        check_problem(past, 416, "range_not_satisfiable")

    def test_the_tail_of_the_store_when_the_folder_is_gone(self, client: TestClient, run: Run, job: Row) -> None:
        run.fail(log=b"the last words\n")
        shutil.rmtree(run.folder)
        body = client.get(f"/v1/jobs/{job['id']}/logs").json()
        assert (body["source"], body["text"]) == ("store", "the last words\n")

    def test_no_piece_tears_a_character_apart(self, client: TestClient, run: Run, job: Row, monkeypatch: Any) -> None:
        monkeypatch.setattr("api.history.service.LOG_CHUNK_BYTES", 9)
        path = f"/v1/jobs/{job['id']}/logs"
        text, offset = "", 0
        while (piece := client.get(path, params={"offset": offset}).json())["next_offset"] > offset:
            text += piece["text"]
            offset = piece["next_offset"]
        assert "loading ✓\n" in text and offset == len(self.TEXT.encode())
