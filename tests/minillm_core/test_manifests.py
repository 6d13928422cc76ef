"""A committed folder is whole: what differs from its manifest is found."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from minillm_core.manifests import FolderDamaged, commit_folder, folder_bytes, verify_folder


def filled(folder: Path, text: str = "weights") -> Path:
    (folder / "ranks" / "0").mkdir(parents=True)
    (folder / "model.bin").write_text(text)
    (folder / "ranks" / "0" / "rng").write_bytes(b"\x00" * 3_000_000)
    (folder / "empty").touch()
    return folder


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    commit_folder(filled(tmp_path / "aside"), tmp_path / "deep" / "final", "checkpoint", {"step": 3})
    return tmp_path / "deep" / "final"


def test_commit_and_verify(tmp_path: Path) -> None:
    aside, final = filled(tmp_path / "aside"), tmp_path / "deep" / "final"
    digest = commit_folder(aside, final, "checkpoint", {"step": 3})
    assert not aside.exists()
    assert digest == hashlib.sha256((final / "manifest.json").read_bytes()).hexdigest()
    manifest = verify_folder(final)
    assert (manifest.kind, manifest.data) == ("checkpoint", {"step": 3})
    assert [entry.name for entry in manifest.files] == ["empty", "model.bin", "ranks/0/rng"]
    assert folder_bytes(manifest) == 3_000_007


def test_an_earlier_folder_is_replaced(tmp_path: Path, committed: Path) -> None:
    (committed / "stale").touch()
    # What a crash between the two renames of an earlier replacement left.
    (committed.parent / ".final.replaced-0").mkdir()
    commit_folder(filled(tmp_path / "again", "new"), committed, "student", {})
    assert (committed / "model.bin").read_text() == "new"
    assert not (committed / "stale").exists()
    assert [path.name for path in committed.parent.iterdir()] == ["final"]
    assert verify_folder(committed).kind == "student"


@pytest.mark.parametrize("change", ["cut", "flip", "remove", "manifest", "no_manifest", "unreadable"])
def test_damage_is_found(committed: Path, change: str) -> None:
    rng = committed / "ranks" / "0" / "rng"
    match change:
        case "cut":
            rng.write_bytes(rng.read_bytes()[:-1])
        case "flip":
            rng.write_bytes(b"\x01" + rng.read_bytes()[1:])
        case "remove":
            rng.unlink()
        case "manifest":
            (committed / "manifest.json").write_text('{"kind": "cake"}')
        case "no_manifest":
            (committed / "manifest.json").unlink()
        case "unreadable":
            (committed / "manifest.json").unlink()
            (committed / "manifest.json").mkdir()
    with pytest.raises(FolderDamaged, match=r"rng|manifest\.json"):
        verify_folder(committed)


def test_a_file_that_the_disk_does_not_give_is_damage(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, *, flush: bool) -> tuple[str, int]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr("minillm_core.manifests._digest", broken)
    with pytest.raises(FolderDamaged, match="cannot be read: Input/output error"):
        verify_folder(committed)


def test_all_of_it_is_on_the_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is renamed or announced first might be there after a power cut without what it stands for."""
    done: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append(("rename", str(path)))
        return rename(path, target)

    aside, final = filled(tmp_path / "aside"), tmp_path / "home" / "final"
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    commit_folder(aside, final, "checkpoint", {})
    before, after = done[: done.index(("rename", str(aside)))], done[done.index(("rename", str(aside))) + 1 :]
    names = ["empty", "model.bin", "ranks/0/rng", "manifest.json", ".", "ranks", "ranks/0"]
    assert {("fsync", str((aside / name).resolve())) for name in names} == set(before)
    manifest = before.index(("fsync", str(aside / "manifest.json")))
    assert all(before.index(("fsync", str(aside / name))) < manifest for name in ("empty", "model.bin", "ranks/0/rng"))
    assert after == [("fsync", str(final.parent))]


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "ranks/../../outside"])
def test_names_outside_are_refused(committed: Path, name: str) -> None:
    manifest = json.loads((committed / "manifest.json").read_text())
    manifest["files"][0]["name"] = name
    (committed / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FolderDamaged, match="outside"):
        verify_folder(committed)
