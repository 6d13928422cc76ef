"""How every program of the service begins: its settings, its log, and what other processes may not read of it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import stat
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.engine import make_url

from store.logging import configure_logging
from store.settings import Settings, get_settings

EX_CONFIG = 78
"""Exit code where a setting is at fault (sysexits.h)."""
PRIVATE_UMASK = 0o077
_PR_SET_DUMPABLE = 4

logger = logging.getLogger(__name__)


def begin(program: str, **given: Any) -> Settings:
    """The settings, with `given` over the environment; from now on the process logs and makes private files alone.

    Raises SystemExit(EX_CONFIG), after a line that names each setting at fault.
    """
    os.umask(PRIVATE_UMASK)
    hide_process()
    try:
        settings = Settings(**given) if given else get_settings()
    except ValidationError as error:
        print(f"{program} does not start: {faults(error)}", file=sys.stderr)
        raise SystemExit(EX_CONFIG) from None
    configure_logging(settings, program=program)
    close_to_others(settings)
    return settings


def hide_process() -> None:
    """Keep this process and its forks from being read by others of the same user (prctl(2), PR_SET_DUMPABLE).

    Trainers run under the same user, and read data and models that strangers made: the environment, the memory and
    the open files of a program are no business of theirs. What is executed can be read again, so trainers
    can be found by their environment. Does nothing where there is no such call.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def faults(error: ValidationError) -> str:
    """What is wrong with the settings, by the names of the variables."""
    told = []
    for fault in error.errors():
        name = "".join(f"MINILLM_{str(part).upper()}: " for part in fault["loc"])
        told.append(name + fault["msg"].removeprefix("Value error, "))
    return "; ".join(told)


def close_to_others(settings: Settings) -> None:
    """Take from other users what they may do in folders and databases that an earlier umask left open to them."""
    folders = (settings.data_dir, settings.files_dir, settings.runs.root, settings.data_dir / "logs")
    for folder in folders:
        _close(folder, 0o700)
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        for suffix in ("", "-wal", "-shm", ".migrate.lock"):
            _close(Path(url.database + suffix), 0o600)


def _close(path: Path, mode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        # A folder that is everybody's by design, /tmp above all, is never made ours.
        if found.st_mode & 0o077 == 0 or found.st_mode & stat.S_ISVTX:
            return
        try:
            path.chmod(mode)
        except OSError as error:
            logger.warning("%s stays open to other users: %s", path, error.strerror)
