"""The folders right under the models root, each judged alone and read again only where something in it changed."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minillm_core.spec.folder_files import MOST_ENTRIES, shown
from minillm_core.spec.model_folder import (
    FolderProblem,
    Inspection,
    inspect_adapter,
    inspect_model,
    is_adapter,
)

FOLDER_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f\ud800-\udfff]{1,255}")
"""Names of folders that a job can name: no separators, not hidden, nothing that a shell or a URL reads otherwise."""

LINKED = "linked_folder"
UNNAMEABLE = "folder_name"

_REMEMBERED = 500
_Signature = tuple[object, ...]


@dataclass(frozen=True)
class FoundFolder:
    """A folder under the models root, whatever is in it."""

    name: str
    kind: Literal["base", "adapter"]
    inspection: Inspection

    @property
    def reference(self) -> str:
        """How a spec names it."""
        return f"path:{self.name}"


class ModelFolders:
    """Looks at names, sizes and times of files, and reads them only where these are not those of the last time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: OrderedDict[tuple[Path, str], tuple[_Signature, Inspection]] = OrderedDict()
        self._lock = threading.Lock()

    def look(self) -> tuple[FoundFolder, ...]:
        """All folders but hidden ones, by name. Raises OSError where the root cannot be listed; none without a root."""
        if not self.root.is_dir():
            return ()
        return tuple(self._found(name) for name in sorted(os.listdir(self.root)) if self._is_candidate(name))

    def inspect(self, folder: Path, root: Path, kind: Literal["base", "adapter"] = "base") -> Inspection:
        """What a folder holds. Its files that are links are read as far as they lie under ``root``."""
        key, signature = (folder, kind), _signature(folder)
        with self._lock:
            seen = self._seen.get(key)
        if seen is not None and seen[0] == signature:
            return seen[1]
        found = (inspect_adapter if kind == "adapter" else inspect_model)(folder, root)
        with self._lock:
            self._seen[key] = (signature, found)
            self._seen.move_to_end(key)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return found

    def _is_candidate(self, name: str) -> bool:
        folder = self.root / name
        return not name.startswith(".") and (folder.is_dir() or (folder.is_symlink() and not folder.is_file()))

    def _found(self, name: str) -> FoundFolder:
        folder = self.root / name
        if folder.is_symlink():
            detail = "the folder is a link, and links are not followed: move the model here, or mount it"
            return FoundFolder(_told(name), "base", Inspection(problems=(FolderProblem(LINKED, detail),)))
        if not FOLDER_NAME.fullmatch(name):
            detail = "the folder's name cannot be written in a job: rename it"
            return FoundFolder(_told(name), "base", Inspection(problems=(FolderProblem(UNNAMEABLE, detail),)))
        kind: Literal["base", "adapter"] = "adapter" if is_adapter(folder) else "base"
        return FoundFolder(name, kind, self.inspect(folder, self.root, kind))


def _told(name: str) -> str:
    return name if FOLDER_NAME.fullmatch(name) else shown(name, 255)


def _signature(folder: Path) -> _Signature:
    try:
        return (_stamp(os.stat(folder)), *sorted(_entries(folder)))
    except OSError as error:
        return (error.errno,)


def _entries(folder: Path) -> Iterator[tuple[object, ...]]:
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number > MOST_ENTRIES:
                return  # Such a folder is refused for that alone.
            try:
                yield (entry.name, *_stamp(entry.stat()))
            except OSError as error:
                yield (entry.name, error.errno)


def _stamp(status: os.stat_result) -> tuple[object, ...]:
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return (status.st_mode, status.st_ino, size, status.st_mtime_ns, status.st_ctime_ns)
