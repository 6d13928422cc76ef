"""Keeps the store's models in step with the folders under the models root, and looks into those that lie elsewhere."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Literal

from minillm_core.spec.hub_cache import cache_folder, cached_snapshot
from minillm_core.spec.model_folder import INCOMPLETE, Inspection
from minillm_core.spec.tokenizer_files import FINGERPRINT_VERSION
from store.bytes.model_folders import FoundFolder, ModelFolders
from store.db.database import Database
from store.db.tables import Model
from store.models import ModelRepository
from store.settings import Settings

logger = logging.getLogger(__name__)


_READ_AGAIN_SECONDS = 60.0
"""Where no student of an older release is left: until a worker of one may have made another."""


class ModelCatalogue:
    """What it writes is a cache of the disk, so that a GET may call it and still be safe."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._folders = ModelFolders(settings.models_dir)
        self._written: tuple[FoundFolder, ...] | None = None
        self.generation = 0
        """Higher after each refresh that found a change."""
        self._looked_at = float("-inf")
        self._lock = threading.Lock()
        self._read_again: set[str] = set()
        self._read_again_at = float("-inf")

    def refresh(self) -> None:
        """Bring the store up to date where a folder has come, gone or changed."""
        asked_at = time.monotonic()
        with self._lock:
            if self._looked_at > asked_at:
                return  # Who looked began after this was asked: of many at once, two look.
            begun_at = time.monotonic()
            try:
                found = self._folders.look()
            except OSError as error:
                logger.warning("the models root cannot be listed: %s", error)
                return
            if found != self._written:
                with self._database.write() as session:
                    ModelRepository(session).update_folders(found)
                self._written = found
                self.generation += 1
            if begun_at >= self._read_again_at:
                self._read_students_again()
            self._looked_at = begun_at

    def _read_students_again(self) -> None:
        """What an older release said of a student's tokenizer is said anew, a few students at a look."""
        with self._database.read() as session:
            rows = ModelRepository(session).of_older_fingerprints(FINGERPRINT_VERSION, self._read_again)
        if not rows:
            self._read_again_at = time.monotonic() + _READ_AGAIN_SECONDS
        for row in rows:
            self._read_again.add(row.id)
            if (found := self.inspect_row(row).description.tokenizer_fingerprint) is not None:
                with self._database.write() as session:
                    ModelRepository(session).set_fingerprint(row.id, found)
                self.generation += 1

    def inspect_row(self, model: Model) -> Inspection:
        """What lies in the folder of a model; nothing is said of one that is not on this machine."""
        root = self._settings.data_dir if model.kind == "student" else self._settings.models_dir
        folder = root / model.path
        if not folder.is_dir():
            return Inspection()
        return self._folders.inspect(folder, root, "adapter" if model.kind == "adapter" else "base")

    def inspect_hub(
        self, repository: str, revision: str | None, kind: Literal["base", "adapter"] = "base"
    ) -> Inspection | None:
        """What lies in the hub's cache of this machine; None where the model is not there, or not whole.

        A download may have broken off or be under way: that files are missing is no problem, what is there may be.
        """
        folder = cached_snapshot(cache_folder(os.environ), repository, revision)
        if folder is None:
            return None
        # The files of a snapshot are links to where the cache keeps them.
        found = self._folders.inspect(folder, folder.parent.parent, kind)
        here = tuple(problem for problem in found.problems if problem.code != INCOMPLETE)
        return None if found.problems and not here else Inspection(found.description, here)
