"""Reading the files of a model's folder, which anybody may have filled with anything.

Every read is bounded, waits for nothing (a pipe, a device), and stays under a root where one is given.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MOST_ENTRIES = 10_000
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SHOWN_CHARACTERS = 100


class Unreadable(Exception):
    """A file is not what it should be. The message names it, relative to its folder."""


class Missing(Unreadable):
    """There is no such file."""


class FolderFiles:
    """The files right in ``folder``. Links among them are followed as far as they stay under ``root``."""

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        """Raises Unreadable where the folder cannot be listed."""
        self.folder = folder
        self._root = None if root is None else Path(os.path.realpath(root))
        self.bytes = 0
        """Size of all files, those of folders within included."""
        try:
            self.names = self._list()
        except OSError as error:
            raise Unreadable(f"the folder cannot be read ({_reason(error)})") from error

    def _list(self) -> frozenset[str]:
        names: set[str] = set()
        left, inside = MOST_ENTRIES, [self.folder]
        while inside:
            here = inside.pop()
            with os.scandir(here) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        raise Unreadable(f"the folder has more than {MOST_ENTRIES:,} files")
                    if here is self.folder:
                        names.add(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        inside.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        self.bytes += entry.stat(follow_symlinks=False).st_size
        return frozenset(names)

    def open(self, name: str) -> BinaryIO:
        """A regular file, opened to read. Raises Missing and Unreadable."""
        path = os.path.join(self.folder, name)
        try:
            if self._root is not None:
                path = os.path.realpath(path, strict=True)
                if not Path(path).is_relative_to(self._root):
                    raise Unreadable(f"{name} is a link out of the models root, and such links are not followed")
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError) as error:
            if name in self.names:
                raise Unreadable(f"{name} is a link that leads nowhere") from error
            raise Missing(f"there is no {name}") from error
        except OSError as error:
            reason = "it is no regular file" if error.errno == errno.ENXIO else _reason(error)
            raise Unreadable(f"{name} cannot be read ({reason})") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Unreadable(f"{name} is no regular file")
        return os.fdopen(descriptor, "rb", buffering=0)

    def read(self, name: str, limit: int) -> bytes:
        """The whole file. Raises Missing, and Unreadable where it has more than ``limit`` bytes or is a pointer."""
        with self.open(name) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise Unreadable(f"{name} has {size:,} bytes, more than the {limit:,} that are read")
            content = read_exactly(file, min(limit, size), name)
        check_no_pointer(content, name)
        return content

    def json_object(self, name: str, limit: int) -> dict[str, Any]:
        """The JSON object that the file is. Raises as :meth:`read`."""
        return json_object(self.read(name, limit), name)


def json_object(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON object that the bytes of a file are. Raises Unreadable."""
    try:
        content = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{name} is not JSON in UTF-8") from error
    if not isinstance(content, dict):
        raise Unreadable(f"{name} is not a JSON object")
    return content


def read_exactly(file: BinaryIO, count: int, name: str) -> bytes:
    """The next ``count`` bytes. Raises Unreadable where the file ends before, or its disk fails."""
    pieces: list[bytes] = []
    left = count
    try:
        while left:
            piece = file.read(min(left, 1 << 20))
            if not piece:
                raise Unreadable(f"{name} is cut short")
            pieces.append(piece)
            left -= len(piece)
    except OSError as error:
        raise Unreadable(f"{name} cannot be read ({_reason(error)})") from error
    return b"".join(pieces)


def check_no_pointer(content: bytes, name: str) -> None:
    """Raise Unreadable where ``content`` is what Git LFS leaves in a file's place."""
    if content.startswith(_LFS_POINTER):
        raise Unreadable(f"{name} is a Git LFS pointer and not the file itself: run git lfs pull")


def shown(value: object, limit: int = _SHOWN_CHARACTERS) -> str:
    """Whatever was found in a file, as text that can be kept and printed."""
    text = value if isinstance(value, str) else repr(value)
    # What has no encoding (half a surrogate pair) or no shape (control characters) is escaped.
    text = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text[: limit + 1]
    )
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
