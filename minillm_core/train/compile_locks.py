"""Compile locks that a killed trainer left behind.

DeepSpeed compiles small ops when it first needs them, through torch, which marks the build folder with a file named
``lock`` and waits for as long as that file is there. A trainer that is killed while it compiles (a Ctrl-C in the first
minute of a first run is enough) never removes it, and every later run on the machine would wait for ever.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LOCK = "lock"


def remove_abandoned_locks(root: Path | None = None) -> list[Path]:
    """Remove the locks below torch's folder of extensions that no living process holds; returns them.

    The holder keeps the file open, so a lock that no process of this machine has open is nobody's. Only processes
    of this user can be looked into: the folder must not be shared with another user or another container at work.
    """
    if root is None:
        root = _extensions()
    removed = []
    # <root>/<op>/lock, or <root>/<python and device>/<op>/lock where torch chooses the folder.
    for lock in [*root.glob(f"*/{LOCK}"), *root.glob(f"*/*/{LOCK}")]:
        with contextlib.suppress(FileNotFoundError):
            found = lock.stat()
            if not _is_open((found.st_dev, found.st_ino)):
                lock.unlink()
                removed.append(lock)
    return removed


def _extensions() -> Path:
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given)
    from torch.utils.cpp_extension import get_default_build_root

    return Path(get_default_build_root())


def _is_open(identity: tuple[int, int]) -> bool:
    """Whether a process that can be looked into has the file (device, inode) open."""
    for process in Path("/proc").glob("[0-9]*"):
        # Processes end and files are closed while this looks; those of other users stay closed to it.
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(process / "fd"):
                with contextlib.suppress(OSError):
                    found = os.stat(descriptor.path)
                    if (found.st_dev, found.st_ino) == identity:
                        return True
    return False
