"""Whether a folder is what its manifest says: the gate before a checkpoint is used or a student is offered."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Literal

from minillm_core.spec import MANIFEST_FILE, Manifest


class ManifestError(Exception):
    """The folder is incomplete, damaged or not what was announced; the message says which file and why."""


class Unreadable(ManifestError):
    """A file cannot be opened or read here and now: it may be whole on another machine or at another time."""


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(
    folder: Path, *, kind: Literal["checkpoint", "student"], manifest_sha256: str, contents: bool = True
) -> Manifest:
    """Check `folder` against its manifest, and the manifest against the digest that was announced for it.

    With ``contents=False`` only presence and sizes of the files are checked, which costs no reading.
    Files that the manifest does not name are allowed and never offered.
    Raises ManifestError.
    """
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise Unreadable(f"{folder.name}: no readable manifest ({error.strerror})") from error
    if hashlib.sha256(raw).hexdigest() != manifest_sha256:
        raise ManifestError(f"{folder.name}: the manifest is not the one that was announced")
    try:
        manifest = Manifest.read(raw)
    except ValueError as error:
        raise ManifestError(f"{folder.name}: the manifest cannot be read: {str(error).splitlines()[0]}") from error
    if manifest.kind != kind:
        raise ManifestError(f"{folder.name}: a manifest of a {manifest.kind}, not of a {kind}")
    if not manifest.files:
        raise ManifestError(f"{folder.name}: the manifest names no files")
    root = folder.resolve()
    for file in manifest.files:
        name = PurePosixPath(file.name)
        path = root.joinpath(*name.parts)
        if name.is_absolute() or ".." in name.parts or not path.resolve().is_relative_to(root):
            raise ManifestError(f"{folder.name}: {file.name!r} lies outside of the folder")
        try:
            size = path.stat().st_size
            if size != file.bytes:
                raise ManifestError(f"{folder.name}: {file.name} has {size} bytes instead of {file.bytes}")
            if contents and file_sha256(path) != file.sha256:
                raise ManifestError(f"{folder.name}: {file.name} is damaged (its sha256 differs)")
        except OSError as error:
            raise Unreadable(f"{folder.name}: {file.name} cannot be read ({error.strerror})") from error
    return manifest
