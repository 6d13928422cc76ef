"""The student arrives whole and checked, or not at all. The files are sent by the service's own code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from api.http.ranges import send_file
from minillm import ApiError, Client, DownloadError

WEIGHTS = bytes(range(256)) * 12_000  # about 3 MB: more than one chunk


class Artifact:
    """A student behind HTTP, with faults to switch on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {
            "config.json": b'{"model_type": "llama"}',
            "model.safetensors": WEIGHTS,
            "sub/merges.txt": b"a b\n",
        }
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        self.break_after: list[int] = []
        """The next responses for the weights break off after so many bytes."""
        self.ranges: list[str | None] = []
        """The Range of each request for the weights."""
        self.extra_entries: list[dict[str, Any]] = []
        self.manifest_file = b'{"kind": "student"}'
        self.manifest_sent = self.manifest_file

    def manifest(self) -> dict[str, Any]:
        files = [
            {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in self.files.items()
        ]
        named = hashlib.sha256(self.manifest_file).hexdigest()
        return {"object": "job.artifact", "manifest_sha256": named, "files": files + self.extra_entries}

    def app(self) -> Starlette:
        def manifest(_: Request) -> Response:
            return JSONResponse(self.manifest())

        def file(request: Request) -> Response:
            name = request.path_params["name"]
            if name == "manifest.json":
                return Response(self.manifest_sent)
            content = self.files[name]
            if name == "model.safetensors":
                self.ranges.append(request.headers.get("range"))
            response = send_file(
                request,
                self.folder / name,
                sha256=hashlib.sha256(content).hexdigest(),
                size=len(content),
                name=Path(name).name,
                media_type="application/octet-stream",
            )
            if name == "model.safetensors" and self.break_after and isinstance(response, StreamingResponse):
                start = int((request.headers.get("range") or "bytes=0-")[6:-1])
                cut = WEIGHTS[start : start + self.break_after.pop(0)]
                return StreamingResponse(_broken(cut), response.status_code, headers=dict(response.headers))
            return response

        path = "/v1/jobs/job_1/artifact"
        return Starlette(routes=[Route(path, manifest), Route(path + "/files/{name:path}", file)])


def _broken(content: bytes) -> Iterator[bytes]:
    yield content
    raise ConnectionResetError


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(tmp_path / "served")


@pytest.fixture
def client(artifact: Artifact, serve: Callable[[Any], str]) -> Iterator[Client]:
    with Client(serve(artifact.app()), sleep=lambda _: None) as client:
        yield client


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_student(artifact: Artifact, client: Client, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = client.download("job_1", tmp_path / "student", progress=lambda done, total: seen.append((done, total)))
    assert folder == tmp_path / "student"
    found = contents(folder)
    assert found.pop("manifest.json") == artifact.manifest_file
    assert found == artifact.files
    total = sum(map(len, artifact.files.values()))
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served", "student"]


def test_a_broken_connection_continues_where_it_broke(artifact: Artifact, client: Client, tmp_path: Path) -> None:
    artifact.break_after = [2_000_000, 500_000]
    client.download("job_1", tmp_path / "student")
    assert (tmp_path / "student/model.safetensors").read_bytes() == WEIGHTS
    first, second, third = artifact.ranges
    assert first is None
    assert second is not None and third is not None
    assert 0 < int(second[6:-1]) <= int(third[6:-1]) <= 2_500_000


def test_an_interrupted_download_continues_in_another_process(
    artifact: Artifact, client: Client, tmp_path: Path
) -> None:
    partial = tmp_path / ".student.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(WEIGHTS[:1_000_000])
    (partial / "of-another-student.bin").write_bytes(b"x")
    client.download("job_1", tmp_path / "student")
    assert artifact.ranges == ["bytes=1000000-"]
    assert set(contents(tmp_path / "student")) == {*artifact.files, "manifest.json"}


def test_a_beginning_that_is_not_the_students_is_fetched_again(
    artifact: Artifact, client: Client, tmp_path: Path
) -> None:
    partial = tmp_path / ".student.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"\xff" * 1000)
    client.download("job_1", tmp_path / "student")
    assert artifact.ranges == ["bytes=1000-", None]
    assert (tmp_path / "student/model.safetensors").read_bytes() == WEIGHTS


def test_a_manifest_other_than_the_one_that_was_read_is_refused(
    artifact: Artifact, client: Client, tmp_path: Path
) -> None:
    artifact.manifest_sent = b"{}"
    with pytest.raises(DownloadError, match=r"manifest\.json"):
        client.download("job_1", tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_corrupt_file_is_refused(artifact: Artifact, client: Client, tmp_path: Path) -> None:
    damaged = bytearray(WEIGHTS)
    damaged[1_234_567] ^= 1
    (artifact.folder / "model.safetensors").write_bytes(bytes(damaged))
    with pytest.raises(DownloadError, match=r"model\.safetensors.*sha256"):
        client.download("job_1", tmp_path / "student")
    assert not (tmp_path / "student").exists()
    assert not (tmp_path / ".student.partial/model.safetensors").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\b", "", "a//b", "./a"])
def test_names_that_lead_out_of_the_folder_are_refused(
    artifact: Artifact, client: Client, tmp_path: Path, name: str
) -> None:
    artifact.extra_entries = [{"name": name, "bytes": 1, "sha256": "0" * 64}]
    with pytest.raises(DownloadError, match="outside"):
        client.download("job_1", tmp_path / "student")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served"]


def test_a_folder_with_other_things_is_left_alone(artifact: Artifact, client: Client, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student/thesis.txt").write_text("years of work")
    with pytest.raises(DownloadError, match="exists"):
        client.download("job_1", tmp_path / "student")
    assert contents(tmp_path / "student") == {"thesis.txt": b"years of work"}


def test_a_second_download_finds_the_first(artifact: Artifact, client: Client, tmp_path: Path) -> None:
    client.download("job_1", tmp_path / "student")
    requests = len(artifact.ranges)
    client.download("job_1", tmp_path / "student")
    assert len(artifact.ranges) == requests
    (tmp_path / "student/config.json").write_text("changed")
    with pytest.raises(DownloadError):
        client.download("job_1", tmp_path / "student")


def test_a_file_that_is_gone(artifact: Artifact, client: Client, tmp_path: Path) -> None:
    (artifact.folder / "config.json").unlink()
    with pytest.raises(Exception) as caught:
        client.download("job_1", tmp_path / "student")
    assert isinstance(caught.value, ApiError)
    assert not (tmp_path / "student").exists()
