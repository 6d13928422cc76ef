"""Absolute paths of this machine, taken out of what a job's owner is shown.

What a trainer says and what its output holds (tracebacks above all) names files by where they lie on the server. That
is no business of whoever posted the job, and means nothing to them: what is left is the path within the run folder,
the models root, the data folder or the Python package.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minillm_core.spec import FailureEvent, MessageEvent, PhaseEvent, StudentEvent, TrainerEvent
from minillm_core.spec.hub_cache import cache_folder
from store.bytes.runs import RUNS
from store.settings import Settings

LONGEST_PATH = 4096

_NAME = rb"[^\s/'\":,;()<>|\x00]+"
_ABOVE = rb"(?<![\w./~-])(?:/" + _NAME + rb")*?/"
# Known by their form, wherever another machine of the service has them.
_RUN = rb"/job_[0-9A-Za-z]+/[0-9]+/"
_FORMS = (
    _ABOVE + RUNS.encode() + _RUN,
    _ABOVE + rb"(?:site|dist)-packages/",
    _ABOVE + rb"lib/(?=python3\.[0-9]+/)",
    _ABOVE + rb"(?=minillm_core/)",
)
_CACHES = ("TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR", "TORCH_HOME", "XDG_CACHE_HOME", "TMPDIR")


class ServerPaths:
    """The folders of one machine of the service."""

    def __init__(self, settings: Settings, environment: Mapping[str, str] = os.environ) -> None:
        known = [
            settings.models_dir,
            settings.files_dir,
            settings.data_dir,
            cache_folder(environment),
            *(Path(environment[name]) for name in _CACHES if environment.get(name)),
            Path(tempfile.gettempdir()),
            Path.home(),
            Path(sys.prefix),
            Path(sys.base_prefix),
        ]
        here = re.escape(os.fsencode(settings.runs.root)) + _RUN
        self._pattern = re.compile(b"|".join((here, *_FORMS, *_roots(known))))

    def relative(self, text: str) -> str:
        """``text`` with the folders before every path left out."""
        # Whatever a trainer wrote, half a surrogate pair included, comes back as it was.
        return self._pattern.sub(b"", text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def relative_data(self, value: Any) -> Any:
        """The same for every text inside a JSON value."""
        if isinstance(value, str):
            return self.relative(value)
        if isinstance(value, dict):
            return {name: self.relative_data(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.relative_data(item) for item in value]
        return value

    def relative_event(self, event: TrainerEvent) -> TrainerEvent:
        """What a trainer says, with such paths."""
        if isinstance(event, FailureEvent):
            message = self.relative(event.failure.message)
            return event.model_copy(update={"failure": event.failure.model_copy(update={"message": message})})
        if isinstance(event, MessageEvent):
            update = {"message": self.relative(event.message), "data": self.relative_data(event.data)}
            return event.model_copy(update=update)
        if isinstance(event, PhaseEvent):
            return event.model_copy(update={"message": self.relative(event.message)})
        if isinstance(event, StudentEvent):
            return event.model_copy(update={"report": self.relative_data(event.report)})
        return event

    def blanked(self, raw: bytes) -> bytes:
        """``raw`` with a NUL for every byte that :meth:`relative` leaves out: all offsets stay true."""
        return self._pattern.sub(lambda found: bytes(len(found.group())), raw)


def _roots(folders: Iterable[Path]) -> list[bytes]:
    """Patterns of what is left out before and of each folder, the longest first."""
    patterns: list[bytes] = []
    for folder in sorted({os.fsencode(folder) for folder in folders}, key=len, reverse=True):
        parent, _, name = folder.rpartition(b"/")
        if not folder.startswith(b"/") or not name:
            continue
        patterns.append(rb"(?<![\w.~-])" + re.escape(folder) + b"/")
        # The folder itself keeps its own name.
        patterns.append(rb"(?<![\w.~-])" + re.escape(parent) + b"/(?=" + re.escape(name) + rb"(?![\w.-]))")
    return patterns
