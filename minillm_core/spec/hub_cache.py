"""Where models of the hub lie on a machine that has downloaded them, in the layout of huggingface_hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

_COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_folder(environment: Mapping[str, str]) -> Path:
    """The cache's folder by the variables that huggingface_hub reads."""
    if named := environment.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    if home := environment.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    caches = environment.get("XDG_CACHE_HOME") or os.path.join(environment.get("HOME", "~"), ".cache")
    return Path(caches).expanduser() / "huggingface" / "hub"


def cached_snapshot(cache: Path, repository: str, revision: str | None) -> Path | None:
    """The folder of a model at a branch, tag or commit (``main`` for None) as it was last downloaded, or None."""
    home = cache / f"models--{repository.replace('/', '--')}"
    wanted = revision or "main"
    try:
        if not _COMMIT.fullmatch(wanted):
            name = PurePosixPath(wanted)
            if name.is_absolute() or ".." in name.parts:
                return None
            with (home / "refs" / name).open() as file:
                wanted = file.read(100).strip()
        snapshot = home / "snapshots" / wanted
        return snapshot if _COMMIT.fullmatch(wanted) and snapshot.is_dir() else None
    except (OSError, ValueError):
        return None
