"""Folders that are whole or not there: checkpoints and exported students.

A folder is filled under another name, every file is flushed to the disk, a manifest with the
sha256 of each file is written last, and one rename makes the folder appear. A reader that finds
the folder and whose checksums agree has all of it, whatever died in the meantime.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError

from minillm_core.spec import MANIFEST_FILE, Manifest, ManifestFile

_READ_BYTES = 1 << 20


class FolderDamaged(Exception):
    """A committed folder that is not what its manifest says; the message names the first difference."""


def commit_folder(tmp: Path, final: Path, kind: Literal["checkpoint", "student"], data: dict[str, Any]) -> str:
    """Turn the filled folder ``tmp`` into ``final`` and return the sha256 of its manifest (hex).

    Both must lie on one file system. An earlier ``final`` is replaced. ``data`` is kept in the
    manifest and must be JSON. Raises OSError when the disk refuses; ``tmp`` is then still there.
    """
    files = []
    for path in _files(tmp):
        if path == tmp / MANIFEST_FILE:
            continue
        digest, size = _digest(path, flush=True)
        files.append(ManifestFile(name=path.relative_to(tmp).as_posix(), bytes=size, sha256=digest))
    created_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    text = Manifest(kind=kind, created_at=created_at, files=files, data=data).dumps()
    with (tmp / MANIFEST_FILE).open("wb") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    for folder in [tmp, *(path for path in tmp.rglob("*") if path.is_dir())]:
        _flush_folder(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        # A folder cannot be renamed over one that has files; the old one leaves by a rename as well.
        final.rename(final.with_name(f".{final.name}.replaced-{uuid.uuid4().hex}"))
    tmp.rename(final)
    _flush_folder(final.parent)
    for replaced in final.parent.glob(f".{final.name}.replaced-*"):
        shutil.rmtree(replaced, ignore_errors=True)
    return hashlib.sha256(text).hexdigest()


def verify_folder(folder: Path) -> Manifest:
    """Read the manifest of ``folder`` and compare every file with it.

    Raises :class:`FolderDamaged` when the manifest is missing or unreadable, or a file is missing, cannot be
    read, has another size or checksum, or is named outside of the folder.
    """
    try:
        manifest = Manifest.read((folder / MANIFEST_FILE).read_bytes())
    except FileNotFoundError:
        raise FolderDamaged(f"{folder} has no {MANIFEST_FILE}") from None
    except OSError as error:
        raise FolderDamaged(f"{folder / MANIFEST_FILE} cannot be read: {error.strerror}") from error
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise FolderDamaged(f"{folder / MANIFEST_FILE} is not a manifest: {reason}") from error
    for entry in manifest.files:
        name = PurePosixPath(entry.name)
        if name.is_absolute() or ".." in name.parts:
            raise FolderDamaged(f"{folder} names a file outside of itself: {entry.name}")
        path = folder / name
        if not path.is_file():
            raise FolderDamaged(f"{path} is missing")
        try:
            # The size is compared first: it finds a cut file without reading it.
            same = path.stat().st_size == entry.bytes and _digest(path, flush=False)[0] == entry.sha256
        except OSError as error:
            raise FolderDamaged(f"{path} cannot be read: {error.strerror}") from error
        if not same:
            raise FolderDamaged(f"{path} is not the file that was committed")
    return manifest


def folder_bytes(manifest: Manifest) -> int:
    """Bytes of all files that the manifest names."""
    return sum(entry.bytes for entry in manifest.files)


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(path for path in folder.rglob("*") if path.is_file()))


def _digest(path: Path, *, flush: bool) -> tuple[str, int]:
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(_READ_BYTES):
            digest.update(block)
        size = source.tell()
        if flush:
            os.fsync(source.fileno())
    return digest.hexdigest(), size


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
