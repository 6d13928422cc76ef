"""What a job leaves behind: events, measurements, attempts, logs, checkpoints, the student."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import EllipsisType
from typing import Any

import httpx

from minillm.api.requests import Pages, Requests, json_of, parsed, query, segment
from minillm.download import download_student
from minillm.errors import Unreachable
from minillm.types import TERMINAL, Attempt, Checkpoint, Event, Job, LogChunk, Manifest, MetricPoint

METRICS_PAGE_SIZE = 1000
"""Steps that are asked for at once."""


class HistoryMethods(Requests):
    def events(self, job_id: str, *, after: int | None = None, limit: int | None = None) -> list[Event]:
        """Events in their order, those after the sequence number `after`."""
        return list(self.iter_events(job_id, after=after, limit=limit))

    def iter_events(self, job_id: str, *, after: int | None = None, limit: int | None = None) -> Pages[Event]:
        """The same, fetched page by page."""
        return self._list(Event, self._job_path(job_id, "events"), query(after=after), limit=limit, cursor="seq")

    def follow_events(self, job_id: str, *, after: int | None = None, interval: float = 1.0) -> Iterator[Event]:
        """Every event as it comes, until the job has ended."""
        while True:
            # Asked before reading: what was written before a job ended is then read after it is known to have.
            ended = self._get(Job, self._job_path(job_id)).state in TERMINAL
            for event in self.iter_events(job_id, after=after):
                after = event.seq
                yield event
            if ended:
                return
            self._sleep(interval)

    def metrics(
        self,
        job_id: str,
        *,
        names: Iterable[str] | None = None,
        phase: str | None = None,
        since_step: int | None = None,
        points: int | None = None,
    ) -> list[MetricPoint]:
        """Measurements by step; all names when `names` is left out, each series thinned to `points` where given."""
        return list(self.iter_metrics(job_id, names=names, phase=phase, since_step=since_step, points=points))

    def iter_metrics(
        self,
        job_id: str,
        *,
        names: Iterable[str] | None = None,
        phase: str | None = None,
        since_step: int | None = None,
        points: int | None = None,
    ) -> Pages[MetricPoint]:
        """The same, fetched page by page."""
        wanted = _series(names, phase, since_step, points)
        return self._list(
            MetricPoint, self._job_path(job_id, "metrics"), wanted, page_size=METRICS_PAGE_SIZE, cursor=None
        )

    def metrics_csv(
        self,
        job_id: str,
        *,
        names: Iterable[str] | None = None,
        phase: str | None = None,
        since_step: int | None = None,
        points: int | None = None,
    ) -> Iterator[str]:
        """The same as pieces of a CSV file (RFC 4180), a column a metric."""
        wanted = _series(names, phase, since_step, points)
        path = self._job_path(job_id, "metrics")
        try:
            with self._transport.stream("GET", path, params=wanted, headers={"Accept": "text/csv"}) as response:
                yield from response.iter_text()
        except httpx.TransportError as error:
            raise Unreachable(f"the measurements broke off: {error or type(error).__name__}") from error

    def attempts(self, job_id: str) -> list[Attempt]:
        """Every attempt, oldest first: where it ran and how it ended."""
        return list(self.iter_attempts(job_id))

    def iter_attempts(self, job_id: str) -> Pages[Attempt]:
        return self._list(Attempt, self._job_path(job_id, "attempts"), page_size=None)

    def attempt(self, job_id: str, number: int) -> Attempt:
        """The attempt with this number: 1, 2, 3 ... within the job."""
        return self._get(Attempt, self._job_path(job_id, "attempts", str(number)))

    def logs(self, job_id: str, *, attempt: int | None = None, stream: str = "stderr", offset: int = 0) -> LogChunk:
        """The trainer's output (`stderr` or `stdout`) from byte `offset` on, as much as the service sends at once.

        `attempt` is the newest when left out.
        """
        return self._get(LogChunk, self._job_path(job_id, "logs"), stream=stream, offset=offset, attempt=attempt)

    # ----------------------------------------------------------------------------- checkpoints

    def checkpoints(self, job_id: str, *, limit: int | None = None) -> list[Checkpoint]:
        """Checkpoints of a job, newest first."""
        return list(self.iter_checkpoints(job_id, limit=limit))

    def iter_checkpoints(self, job_id: str, *, limit: int | None = None) -> Pages[Checkpoint]:
        """The same, fetched page by page."""
        return self._list(Checkpoint, self._job_path(job_id, "checkpoints"), limit=limit)

    def checkpoint(self, job_id: str, checkpoint_id: str) -> Checkpoint:
        return self._get(Checkpoint, self._checkpoint_path(job_id, checkpoint_id))

    def update_checkpoint(
        self,
        job_id: str,
        checkpoint_id: str,
        *,
        pinned: bool | None = None,
        expires_at: datetime | EllipsisType | None = ...,
    ) -> Checkpoint:
        """Change what is given. A pinned one stays as long as its job; `expires_at` needs a zone, None is never."""
        patch: dict[str, Any] = {} if pinned is None else {"pinned": pinned}
        if not isinstance(expires_at, EllipsisType):
            patch["expires_at"] = None if expires_at is None else expires_at.isoformat()
        path = self._checkpoint_path(job_id, checkpoint_id)
        return parsed(Checkpoint, json_of(self._transport.request("PATCH", path, json=patch, idempotent=True)))

    def delete_checkpoint(self, job_id: str, checkpoint_id: str) -> None:
        """Delete one that is neither pinned nor where an unfinished fork begins or an attempt goes on."""
        self._transport.request("DELETE", self._checkpoint_path(job_id, checkpoint_id))

    # ----------------------------------------------------------------------------- the student

    def artifact(self, job_id: str) -> Manifest:
        """The files of the finished student with their sizes and sha256."""
        return self._get(Manifest, self._job_path(job_id, "artifact"))

    def download(self, job_id: str, folder: str | Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
        """Fetch the student into `folder` and return it: see `minillm.download.download_student`."""
        return download_student(
            self._transport, self._job_path(job_id, "artifact"), Path(folder), progress=progress, sleep=self._sleep
        )

    def _checkpoint_path(self, job_id: str, checkpoint_id: str) -> str:
        return self._job_path(job_id, "checkpoints", segment(checkpoint_id))


def _series(
    names: Iterable[str] | None, phase: str | None, since_step: int | None, points: int | None
) -> dict[str, str]:
    listed = None if names is None else ",".join(names)
    return query(names=listed, phase=phase, since_step=since_step, points=points)
