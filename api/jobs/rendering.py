"""Jobs as the JSON that goes out, made once for each version of a row.

Nearly all of a job's answer changes with its row's version alone. Two values change without it: the time left of a
running job, and the place in the queue of one that waits. They are put into the rendered rest for each answer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic_core import to_json

from api.jobs.schemas import JobOut

_SEAM = b'"seconds_left":null},"queue_position":null'
"""Where the two values go; fields of a job's answer that follow each other."""
_MOST = 4096


@dataclass(frozen=True, slots=True)
class Rendering:
    before: bytes
    after: bytes

    @classmethod
    def of(cls, job: JobOut) -> Rendering:
        """Of a job without time left and place."""
        before, seam, after = job.model_dump_json().encode().partition(_SEAM)
        assert seam, "progress ends with seconds_left, and queue_position follows it"
        return cls(before, after)

    def with_values(self, seconds_left: float | None, queue_position: int | None) -> bytes:
        if seconds_left is None and queue_position is None:
            return self.before + _SEAM + self.after
        values = b'"seconds_left":%b},"queue_position":%b' % (to_json(seconds_left), to_json(queue_position))
        return self.before + values + self.after


def etag(version: int, queue_position: int | None) -> str:
    """The row's version, and for a queued job its place, which changes without the row."""
    return f'"{version}"' if queue_position is None else f'"{version}.{queue_position}"'


class Renderings:
    """Those of the jobs that were asked for last, by id and version; used by many threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[int, Rendering]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, job_id: str, version: int) -> Rendering | None:
        with self._lock:
            found = self._kept.get(job_id)
            if found is None or found[0] != version:
                return None
            self._kept.move_to_end(job_id)
            return found[1]

    def keep(self, job_id: str, version: int, rendering: Rendering) -> None:
        with self._lock:
            self._kept[job_id] = (version, rendering)
            self._kept.move_to_end(job_id)
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)


class QueuePlaces:
    """Places in the queue for as long as nothing is committed to the database, by its stamp."""

    def __init__(self) -> None:
        # Replaced as a whole: threads that read it see a stamp with its own places.
        self._known: tuple[object, dict[str, int]] = (None, {})

    def get(self, stamp: object, job_id: str) -> int | None:
        known_stamp, places = self._known
        return places.get(job_id) if stamp is not None and stamp == known_stamp else None

    def keep(self, stamp: object, places: Mapping[str, int]) -> None:
        """`stamp` was read before the places were, or is None."""
        if stamp is None:
            return
        known_stamp, known = self._known
        self._known = (stamp, {**known, **places} if stamp == known_stamp else dict(places))
