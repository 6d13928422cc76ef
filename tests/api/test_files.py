import hashlib

from sqlalchemy import delete
from starlette.testclient import TestClient

from api.services import Services
from store.db.tables import File
from store.settings import Settings
from tests.api.conftest import Row, check_problem, jsonl, upload

CONTENT = jsonl(*({"prompt": f"the cat {number}", "response": "runs"} for number in range(50)))


def test_upload_and_read_back(client: TestClient) -> None:
    response = upload(client, CONTENT)
    assert response.status_code == 201
    file = response.json()
    assert response.headers["location"] == f"/v1/files/{file['id']}"
    assert file["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert (file["bytes"], file["lines"], file["filename"], file["purpose"]) == (
        len(CONTENT), 50, "rows.jsonl", "dataset"
    )  # fmt: skip
    assert client.get(f"/v1/files/{file['id']}").json() == file
    content = client.get(f"/v1/files/{file['id']}/content")
    assert content.content == CONTENT
    assert content.headers["etag"] == f'"{file["sha256"]}"'


def test_list(client: TestClient) -> None:
    ids = [upload(client).json()["id"] for _ in range(3)][::-1]
    corpus = upload(client, b"plain text\n", purpose="corpus").json()["id"]
    assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [corpus, *ids]
    assert [file["id"] for file in client.get("/v1/files?purpose=corpus").json()["data"]] == [corpus]
    page = client.get(f"/v1/files?limit=1&after={ids[0]}").json()
    assert (page["data"][0]["id"], page["has_more"]) == (ids[1], True)


def test_the_page_after_a_file_that_is_gone(client: TestClient, services: Services) -> None:
    newest, gone, oldest = [upload(client).json()["id"] for _ in range(3)][::-1]
    with services.database.write() as session:
        session.execute(delete(File).where(File.id == gone))
    found = client.get("/v1/files", params={"after": gone}).json()["data"]
    assert [file["id"] for file in found] == [oldest]
    found = client.get("/v1/files", params={"before": gone}).json()["data"]
    assert [file["id"] for file in found] == [newest]
    check_problem(client.get("/v1/files", params={"after": "job" + gone[4:]}), 422, "unknown_cursor", "after")


def test_ranges_and_conditions(client: TestClient) -> None:
    file = upload(client, CONTENT).json()
    path = f"/v1/files/{file['id']}/content"
    etag = f'"{file["sha256"]}"'
    part = client.get(path, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, CONTENT[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(CONTENT)}"
    assert client.get(path, headers={"Range": "bytes=10-", "If-Range": etag}).content == CONTENT[10:]
    assert client.get(path, headers={"Range": "bytes=10-", "If-Range": '"old"'}).content == CONTENT
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
    past = client.get(path, headers={"Range": f"bytes={len(CONTENT)}-"})
    check_problem(past, 416, "range_not_satisfiable")
    assert past.headers["content-range"] == f"bytes */{len(CONTENT)}"
    check_problem(client.get(path, headers={"Range": "bytes=0-1,5-6"}), 416, "range_not_satisfiable")
    head = client.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(CONTENT)))


def test_a_name_that_headers_cannot_hold(client: TestClient) -> None:
    file = client.post("/v1/files", files={"file": ('é"\r\n x.jsonl', CONTENT)}).json()
    response = client.get(f"/v1/files/{file['id']}/content")
    assert response.status_code == 200
    assert response.headers["content-disposition"].startswith('attachment; filename="')
    assert "\n" not in response.headers["content-disposition"]


def test_delete(client: TestClient, job: Row) -> None:
    used = job["dataset"]["file"]
    check_problem(client.delete(f"/v1/files/{used}"), 409, "in_use")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/files/{used}").json() == {"id": used, "object": "file", "deleted": True}
    for path in (f"/v1/files/{used}", f"/v1/files/{used}/content"):
        check_problem(client.get(path), 404, "not_found")
    assert client.get("/v1/files").json()["data"] == []


def test_bytes_that_are_gone_are_said_to_be(client: TestClient, services: Services, file_id: str) -> None:
    services.blobs.delete(file_id)
    check_problem(client.get(f"/v1/files/{file_id}/content"), 404, "content_gone")


def test_a_row_that_cannot_be_written_leaves_no_bytes(
    client: TestClient, settings: Settings, services: Services
) -> None:
    services.database.engine.dispose()
    (settings.data_dir / "minillm.db").write_bytes(b"no database at all" * 100)
    assert upload(client).status_code in (500, 503)
    assert [path for path in settings.files_dir.glob("*") if path.is_file()] == []
