import shutil
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.services import Services
from tests.api.conftest import Row, check_problem
from tests.api.runs import Run

TEXT = "loading ✓\n\x1b[31mred\x1b[0m\nstep 1\n"


@pytest.fixture
def run(services: Services, job: Row) -> Run:
    run = Run(services, job["id"])
    (run.folder / "stderr.log").write_text(TEXT)
    (run.folder / "stdout.log").write_text("out\n")
    return run


def test_not_started(client: TestClient, job: Row) -> None:
    check_problem(client.get(f"/v1/jobs/{job['id']}/logs"), 404, "no_log")


def test_pieces(client: TestClient, run: Run, job: Row) -> None:
    path = f"/v1/jobs/{job['id']}/logs"
    body = client.get(path).json()
    assert body["text"] == "loading ✓\nred\nstep 1\n", "without what drives terminals"
    assert (body["source"], body["attempt"], body["size"]) == ("file", 1, len(TEXT.encode()))
    assert body["next_offset"] == body["size"]
    assert client.get(path, params={"offset": -7}).json()["text"] == "step 1\n"
    assert client.get(path, params={"stream": "stdout"}).json()["text"] == "out\n"
    with (run.folder / "stderr.log").open("a") as log:
        log.write("step 2\n")
    assert client.get(path, params={"offset": body["next_offset"]}).json()["text"] == "step 2\n"
    check_problem(client.get(path, params={"attempt": 2}), 404, "not_found")
    check_problem(client.get(path, params={"stream": "../../spec"}), 422, "invalid_value", "stream")


def test_text_and_ranges(client: TestClient, run: Run, job: Row) -> None:
    path = f"/v1/jobs/{job['id']}/logs"
    whole = client.get(path, headers={"Accept": "text/plain"})
    assert len(whole.content) == len(TEXT.encode()) and b"\x1b" not in whole.content
    part = client.get(path, headers={"Accept": "text/plain", "Range": "bytes=0-6"})
    assert (part.status_code, part.text) == (206, "loading")
    assert part.headers["content-range"] == f"bytes 0-6/{len(whole.content)}"
    past = client.get(path, headers={"Accept": "text/plain", "Range": "bytes=1000-"})
    check_problem(past, 416, "range_not_satisfiable")


def test_the_tail_of_the_store_when_the_folder_is_gone(client: TestClient, run: Run, job: Row) -> None:
    run.fail(log=b"the last words\n")
    shutil.rmtree(run.folder)
    body = client.get(f"/v1/jobs/{job['id']}/logs").json()
    assert (body["source"], body["text"]) == ("store", "the last words\n")


def test_no_piece_tears_a_character_apart(client: TestClient, run: Run, job: Row, monkeypatch: Any) -> None:
    monkeypatch.setattr("api.logs.service.CHUNK_BYTES", 9)
    path = f"/v1/jobs/{job['id']}/logs"
    text, offset = "", 0
    while (piece := client.get(path, params={"offset": offset}).json())["next_offset"] > offset:
        text += piece["text"]
        offset = piece["next_offset"]
    assert "loading ✓\n" in text and offset == len(TEXT.encode())


def test_no_folder_of_the_server_is_shown(
    client: TestClient, services: Services, run: Run, job: Row, monkeypatch: Any
) -> None:
    raw = f'File "{services.settings.data_dir}/files/a b", in {run.folder}/checkpoints\n' * 3
    (run.folder / "stderr.log").write_text(raw)
    path, text = f"/v1/jobs/{job['id']}/logs", {"Accept": "text/plain"}
    assert client.get(path).json()["text"] == 'File "a b", in checkpoints\n' * 3
    whole = client.get(path, headers=text).content
    assert len(whole) == len(raw) and b"/" not in whole
    for size in (1, 7, 40):
        monkeypatch.setattr("api.logs.service.CHUNK_BYTES", size)
        assert client.get(path, headers=text).content == whole
    part = client.get(path, headers={**text, "Range": "bytes=20-90"}).content
    assert part == whole[20:91]
