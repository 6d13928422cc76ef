import hashlib
import io
import json
import tarfile
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from starlette.testclient import TestClient

from api.services import Services
from tests.api.conftest import Row, check_problem
from tests.api.runs import STUDENT_FILES, WEIGHTS, Run


@pytest.fixture
def run(services: Services, job: Row) -> Run:
    return Run(services, job["id"])


@pytest.fixture
def path(run: Run, job: Row) -> str:
    run.train(1)
    run.succeed()
    return f"/v1/jobs/{job['id']}/artifact"


def test_manifest(client: TestClient, path: str) -> None:
    response = client.get(path)
    body = response.json()
    assert {file["name"]: file["sha256"] for file in body["files"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in STUDENT_FILES.items()
    }
    assert (body["parameters"], body["teacher_parameters"]) == (10, 20)
    assert response.headers["etag"] == f'"{body["manifest_sha256"]}"'
    assert client.get(path, headers={"If-None-Match": response.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("name", list(STUDENT_FILES))
def test_files(client: TestClient, path: str, name: str) -> None:
    response = client.get(f"{path}/files/{name}")
    assert response.content == STUDENT_FILES[name]
    assert response.headers["etag"] == f'"{hashlib.sha256(STUDENT_FILES[name]).hexdigest()}"'


def test_a_download_that_broke_goes_on(client: TestClient, path: str) -> None:
    url = f"{path}/files/model.safetensors"
    etag = client.head(url).headers["etag"]
    rest = client.get(url, headers={"Range": "bytes=1000-", "If-Range": etag})
    assert (rest.status_code, rest.content) == (206, WEIGHTS[1000:])
    assert rest.headers["content-range"] == f"bytes 1000-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
    assert client.get(url, headers={"Range": "bytes=1000-", "If-Range": '"other"'}).content == WEIGHTS
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 304
    check_problem(client.get(url, headers={"Range": "bytes=99999-"}), 416, "range_not_satisfiable")


def test_tar(client: TestClient, path: str, job: Row) -> None:
    response = client.get(path, params={"format": "tar"})
    assert response.headers["content-type"] == "application/x-tar"
    assert int(response.headers["content-length"]) == len(response.content)
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    manifest = json.loads(found.pop(f"{job['id']}/manifest.json"))
    assert found == {f"{job['id']}/{name}": content for name, content in STUDENT_FILES.items()}
    assert {file["name"] for file in manifest["files"]} == set(STUDENT_FILES)
    unchanged = client.get(path, params={"format": "tar"}, headers={"If-None-Match": response.headers["etag"]})
    assert unchanged.status_code == 304


def test_the_manifest_is_a_file_too(client: TestClient, path: str) -> None:
    response = client.get(f"{path}/files/manifest.json")
    named = client.get(path).json()["manifest_sha256"]
    assert hashlib.sha256(response.content).hexdigest() == named
    assert response.headers["etag"] == f'"{named}"'


def test_a_tar_that_broke_goes_on(client: TestClient, path: str) -> None:
    whole = client.get(path, params={"format": "tar"})
    head = client.head(path, params={"format": "tar"})
    assert head.headers["content-length"] == str(len(whole.content)) and head.content == b""
    for start, stop in ((0, 1), (511, 513), (700, 1800), (5000, len(whole.content)), (3, 12000)):
        headers = {"Range": f"bytes={start}-{stop - 1}", "If-Range": whole.headers["etag"]}
        part = client.get(path, params={"format": "tar"}, headers=headers)
        assert (part.status_code, part.content) == (206, whole.content[start:stop])
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(whole.content)}"
    check_problem(
        client.get(path, params={"format": "tar"}, headers={"Range": "bytes=999999-"}), 416, "range_not_satisfiable"
    )


def test_long_names_in_the_tar(client: TestClient, run: Run, job: Row) -> None:
    name = "/".join(["folder" * 10] * 5) + "/größe.json"
    run.train(1)
    run.succeed({name: b"{}"})
    content = client.get(f"/v1/jobs/{job['id']}/artifact?format=tar").content
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.extractfile(f"{job['id']}/{name}").read() == b"{}"  # type: ignore[union-attr]


def test_before_the_end_and_without_one(client: TestClient, run: Run, job: Row) -> None:
    path = f"/v1/jobs/{job['id']}/artifact"
    run.train(1)
    check_problem(client.get(path), 409, "artifact_not_ready")
    run.fail()
    check_problem(client.get(path), 404, "no_artifact")
    check_problem(client.get(f"{path}/files/config.json"), 404, "no_artifact")


def test_bytes_that_are_not_as_recorded(client: TestClient, path: str, run: Run) -> None:
    (run.folder / "student" / "model.safetensors").write_bytes(b"cut")
    check_problem(client.get(f"{path}/files/model.safetensors"), 404, "content_gone")
    check_problem(client.get(path, params={"format": "tar"}), 404, "content_gone")


class TestTraversal:
    NAMES = (
        "../spec.json",
        "..%2fspec.json",
        "%2e%2e/spec.json",
        "%252e%252e%252fspec.json",
        "..\\spec.json",
        "assets/../../spec.json",
        "assets/../config.json",
        "./config.json",
        "/etc/passwd",
        "//etc/passwd",
        "config.json/",
        "CONFIG.JSON",
        "link.json",
        "",
    )

    @pytest.mark.parametrize("name", NAMES)
    def test_only_names_of_the_manifest(self, client: TestClient, path: str, run: Run, name: str) -> None:
        (run.folder / "spec.json").write_text("secret")
        (run.folder / "student" / "link.json").symlink_to(run.folder / "spec.json")
        # Dots go encoded: a client resolves `..` itself and would never send it.
        response = client.get(f"{path}/files/{name.replace('.', '%2E')}")
        assert response.status_code == 404
        assert "secret" not in response.text

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        parts=strategies.lists(
            strategies.sampled_from(["..", ".", "", "assets", "config.json", "~", "%2e%2e", "\\", "\0", "spec.json"])
            | strategies.text(max_size=5),
            min_size=1,
            max_size=6,
        )
    )
    def test_fuzz(self, client: TestClient, path: str, parts: list[str]) -> None:
        name = "/".join(parts)
        response = client.get(f"{path}/files/{quote(name, safe='', errors='replace').replace('.', '%2E')}")
        if response.status_code == 200:
            assert response.content == STUDENT_FILES[name]
        else:
            assert response.status_code in (404, 422)
            assert response.headers["content-type"] == "application/problem+json"

    def test_a_link_put_in_place_of_a_file(self, client: TestClient, path: str, run: Run) -> None:
        secret = run.folder / "spec.json"
        secret.write_bytes(b"x" * len(STUDENT_FILES["config.json"]))
        config = run.folder / "student" / "config.json"
        config.unlink()
        config.symlink_to(secret)
        assert client.get(f"{path}/files/config.json").status_code == 404
        assert client.get(path, params={"format": "tar"}).status_code == 404
