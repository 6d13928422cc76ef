from __future__ import annotations

import os
from pathlib import Path

import pytest

from store.bytes.model_folders import ModelFolders
from store.db.database import Database
from store.db.errors import NotFound
from store.models import ModelRepository
from tests.api.model_folders import write_model


def test_folders_become_models(database: Database, tmp_path: Path) -> None:
    write_model(tmp_path, "one")
    write_model(tmp_path, ".hidden")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    folders = ModelFolders(tmp_path)

    def update() -> dict[str, list[str]]:
        with database.write() as session:
            models = ModelRepository(session)
            models.update_folders(folders.look())
            return {
                model.reference: [model.kind, *(problem["code"] for problem in model.problems or [])]
                for model in models.list("anyone").items
            }

    assert update() == {
        "path:one": ["base"],
        "path:empty": ["base", "model_incomplete", "model_incomplete", "model_incomplete"],
        "path:link": ["base", "linked_folder"],
        "path:adapter": ["adapter", "adapter_invalid", "model_incomplete"],
    }
    with database.read() as session:
        one = ModelRepository(session).get("anyone", "path:one")
        assert (one.path, one.kind, one.layers, one.problems) == ("one", "base", 4, None)
        assert ModelRepository(session).get("anyone", one.id) is one
    (tmp_path / "link").unlink()
    (tmp_path / "one").rename(tmp_path / "two")
    (tmp_path / "empty").rmdir()
    write_model(tmp_path, "three")
    (tmp_path / "three" / "config.json").write_text("{")
    assert update() == {
        "path:two": ["base"],
        "path:three": ["base", "model_unreadable"],
        "path:adapter": ["adapter", "adapter_invalid", "model_incomplete"],
    }
    with database.read() as session, pytest.raises(NotFound):
        ModelRepository(session).get("anyone", "path:one")


def test_a_folder_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "one")
    folders = ModelFolders(tmp_path)
    (first,) = folders.look()
    assert folders.look()[0].inspection is first.inspection
    os.utime(folder / "config.json", ns=(1, 1))
    assert folders.look()[0].inspection is not first.inspection
    (folder / "config.json").chmod(0o600)
    assert folders.look()[0].inspection == first.inspection


def test_names_that_no_job_can_say(database: Database, tmp_path: Path) -> None:
    for name in (b"\xff\xfe", b"a\nb", b"back\\slash", "grüße 東京".encode(), b"x" * 255):
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    with database.write() as session:
        ModelRepository(session).update_folders(ModelFolders(tmp_path).look())
    with database.read() as session:
        rows = ModelRepository(session).list("anyone").items
        unnameable = {row.name for row in rows if row.problems and row.problems[0]["code"] == "folder_name"}
    assert unnameable == {r"\udcff\udcfe", r"a\nb", r"back\slash"}
    assert {row.name for row in rows} - unnameable == {"grüße 東京", "x" * 255}


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    assert ModelFolders(tmp_path / "nowhere").look() == ()
