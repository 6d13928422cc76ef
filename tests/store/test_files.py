from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.bytes.blobs import BlobTooLarge, LocalBlobs
from store.db.database import Database
from store.db.errors import Conflict, NotFound
from store.db.ids import new_id
from store.files import FileRepository
from store.jobs.repository import JobRepository
from tests.fixtures.sweep import sweep
from tests.store import scenes


def test_blob_round_trip(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "files")
    name = new_id("file")
    info = blobs.put(name, [b"ab", b"c"], limit=3)
    assert (info.bytes, info.sha256[:8]) == (3, "ba7816bf")
    with blobs.open(name) as file:
        assert file.read() == b"abc"
    blobs.delete(name)
    blobs.delete(name)
    with pytest.raises(FileNotFoundError):
        blobs.path(name)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        blobs.put(new_id("file"), broken(), limit=10)
    with pytest.raises(BlobTooLarge):
        blobs.put(new_id("file"), [b"x" * 6, b"x" * 6], limit=10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "file_", "/etc/passwd", "file_" + "a" * 25 + "/", "file_\x00" + "a" * 25])
def test_only_ids_name_blobs(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        LocalBlobs(tmp_path).open(name)


def test_file_rows(database: Database) -> None:
    with database.write() as session:
        files = FileRepository(session)
        row = files.create(
            id=new_id("file"),
            owner_id="o",
            filename="a\x00.jsonl",
            purpose="dataset",
            bytes=3,
            sha256="0" * 64,
            lines=1,
        )
        assert row.filename == "a.jsonl"
        assert [file.id for file in files.list("o", purpose="dataset").items] == [row.id]
        assert files.list("p").items == []
        with pytest.raises(NotFound):
            files.get("p", row.id)
        jobs = JobRepository(session)
        job = jobs.create(owner_id="o", spec=scenes.make_spec(dataset={"file": row.id}))
        with pytest.raises(Conflict):
            files.request_delete(row)
        jobs.request_cancel(job)
        files.request_delete(row)
        with pytest.raises(NotFound):
            files.get("o", row.id)
    assert sweep(database).delete_files == [row.id]
    with database.write() as session:
        FileRepository(session).purge(row.id)
    assert sweep(database).delete_files == []


def test_files_expire(database: Database) -> None:
    with database.write() as session:
        files = FileRepository(session)
        name = new_id("file")
        now = database.now(session)
        files.create(id=name, owner_id="o", filename="a", purpose="d", bytes=1, sha256="0" * 64, expires_at=now)
        job = JobRepository(session).create(owner_id="o", spec=scenes.make_spec(dataset={"file": name}))
    assert sweep(database).delete_files == []  # an unfinished job still needs it
    with database.write() as session:
        JobRepository(session).request_cancel(job)
    assert sweep(database).delete_files == [name]
