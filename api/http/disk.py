"""Space on the disk that the service keeps everything on."""

from __future__ import annotations

import shutil
from pathlib import Path

from api.http.problems import InsufficientStorage
from store.settings import Settings


def free_bytes(folder: Path) -> int:
    """Free bytes where `folder` lies or will lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(settings: Settings, size: int = 0) -> None:
    """Raise InsufficientStorage unless `size` more bytes leave `min_free_bytes` free."""
    left = free_bytes(settings.data_dir) - size
    if left < settings.min_free_bytes:
        raise InsufficientStorage(
            f"The server's disk is too full: {max(left, 0):,} bytes would be left, and it keeps "
            f"{settings.min_free_bytes:,} free (MINILLM_MIN_FREE_BYTES)."
        )
