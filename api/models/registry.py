"""Keeps the store's registry of base models in step with the folders under the models root."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from store.db.database import Database
from store.models import ModelRepository

_Signature = frozenset[tuple[str, int, int]]


class Registry:
    """Looks at names, sizes and times of the folders' files, and reads them only when something changed.

    What it writes is a cache of the disk, so that a GET may call it and still be safe.
    """

    def __init__(self, database: Database, models_root: Path) -> None:
        self.root = models_root
        self._database = database
        self._seen: _Signature | None = None
        self._lock = threading.Lock()

    def refresh(self) -> None:
        with self._lock:
            signature = _signature(self.root)
            if signature != self._seen:
                with self._database.write() as session:
                    ModelRepository(session).scan(self.root)
                self._seen = signature


def _signature(root: Path) -> _Signature:
    """(path, size, time of change) of every file of every folder right under `root`."""
    entries = []
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.name.startswith(".") or folder.is_symlink() or not folder.is_dir():
            continue
        with os.scandir(folder) as files:
            for file in files:
                status = file.stat(follow_symlinks=False)
                entries.append((f"{folder.name}/{file.name}", status.st_size, status.st_mtime_ns))
    return frozenset(entries)
