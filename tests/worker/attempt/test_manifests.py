"""Whether a folder is what its manifest says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from worker.attempt.manifests import ManifestError, verify


def _folder(root: Path, *, kind: str = "student", **changes: Any) -> tuple[Path, str]:
    folder = root / "student"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"abc")
    entry = {"name": "a.bin", "bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest(), **changes}
    manifest = json.dumps({"kind": kind, "created_at": "", "files": [entry], "data": {}}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    return folder, hashlib.sha256(manifest).hexdigest()


def test_a_whole_folder_verifies(tmp_path: Path) -> None:
    folder, digest = _folder(tmp_path)
    assert [file.name for file in verify(folder, kind="student", manifest_sha256=digest).files] == ["a.bin"]


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    folder, digest = _folder(tmp_path)
    (folder / "a.bin").write_bytes(b"abd")
    with pytest.raises(ManifestError, match=r"a\.bin is damaged"):
        verify(folder, kind="student", manifest_sha256=digest)
    verify(folder, kind="student", manifest_sha256=digest, contents=False)


def test_a_missing_or_short_file_is_found_without_reading(tmp_path: Path) -> None:
    folder, digest = _folder(tmp_path)
    (folder / "a.bin").write_bytes(b"ab")
    with pytest.raises(ManifestError, match="2 bytes instead of 3"):
        verify(folder, kind="student", manifest_sha256=digest, contents=False)
    (folder / "a.bin").unlink()
    with pytest.raises(ManifestError, match="cannot be read"):
        verify(folder, kind="student", manifest_sha256=digest, contents=False)


def test_another_manifest_than_announced_is_refused(tmp_path: Path) -> None:
    folder, _ = _folder(tmp_path)
    with pytest.raises(ManifestError, match="not the one that was announced"):
        verify(folder, kind="student", manifest_sha256="0" * 64)


def test_a_manifest_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder, digest = _folder(tmp_path, kind="checkpoint")
    with pytest.raises(ManifestError, match="of a checkpoint"):
        verify(folder, kind="student", manifest_sha256=digest)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "link"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_bytes(b"abc")
    folder, digest = _folder(tmp_path, name=name)
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ManifestError, match="lies outside"):
        verify(folder, kind="student", manifest_sha256=digest)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no readable manifest"):
        verify(tmp_path / "gone", kind="checkpoint", manifest_sha256="")
