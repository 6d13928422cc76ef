"""Contents of uploaded files, behind a small protocol."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

_ID = re.compile(r"^[a-z]+_[0-9a-z]{26}$")


class BlobTooLarge(Exception):
    """More bytes came than allowed; nothing was kept."""


@dataclass(frozen=True)
class BlobInfo:
    bytes: int
    sha256: str


class BlobStore(Protocol):
    """Where contents lie, by id. A blob is there whole or not at all."""

    def put(self, id: str, chunks: Iterable[bytes], *, limit: int) -> BlobInfo:
        """Keep a content. Raises BlobTooLarge above ``limit`` bytes and OSError where the disk is full."""

    def open(self, id: str) -> BinaryIO:
        """Raises FileNotFoundError."""

    def path(self, id: str) -> Path:
        """Where on this machine the content lies. Raises FileNotFoundError."""

    def delete(self, id: str) -> None:
        """Again is no error."""


class LocalBlobs:
    """Blobs as files named by their id in one folder: written aside, fsynced, renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, id: str, chunks: Iterable[bytes], *, limit: int) -> BlobInfo:
        target = self._target(id)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = self.folder / f".{id}.{secrets.token_hex(4)}"
        digest = hashlib.sha256()
        size = 0
        try:
            with open(aside, "xb", opener=_private) as file:
                for chunk in chunks:
                    size += len(chunk)
                    if size > limit:
                        raise BlobTooLarge(f"more than {limit} bytes")
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(target)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        self._sync_folder()
        return BlobInfo(size, digest.hexdigest())

    def open(self, id: str) -> BinaryIO:
        return self._target(id).open("rb")

    def path(self, id: str) -> Path:
        target = self._target(id)
        if not target.is_file():
            raise FileNotFoundError(id)
        return target

    def delete(self, id: str) -> None:
        self._target(id).unlink(missing_ok=True)

    def _target(self, id: str) -> Path:
        if not _ID.match(id):
            raise FileNotFoundError(id)
        return self.folder / id

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
