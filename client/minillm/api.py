"""The client: one method for each thing the service does."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import EllipsisType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from minillm.download import download_student
from minillm.errors import MinillmError, SpecError, Unreachable
from minillm.transport import Transport
from minillm.types import Attempt, Checkpoint, Event, File, Job, LogChunk, Manifest, MetricPoint, Model

UPLOAD_TIMEOUT_SECONDS = 600.0
"""The service checks every row of a dataset before it answers."""

Answer = TypeVar("Answer", bound=BaseModel)


def _parsed(type_: type[Answer], body: Any) -> Answer:
    try:
        return type_.model_validate(body)
    except ValidationError as error:
        raise MinillmError(f"the service answered what is no {type_.__name__}: {error.errors()[0]['msg']}") from error


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise MinillmError(f"{response.url} answered what is no JSON: is it the address of the service?") from error


def _segment(text: str) -> str:
    """Text as one segment of a path, so that an id such as `../files` goes nowhere else."""
    if text in ("", ".", ".."):
        raise MinillmError(f"{text!r} is no id")
    return quote(text, safe="")


class Client:
    """A client of one service; also a context manager that closes its connections.

    `base_url` and `api_key` default to MINILLM_URL (else http://127.0.0.1:8000) and MINILLM_API_KEY. Every method
    raises ApiError where the service refuses and Unreachable where it does not answer. `timeout` is in seconds and
    bounds each wait for the network, not the whole call. `transport` and `sleep` replace the network and the waiting
    in tests.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sleep = sleep
        self._transport = Transport(base_url, api_key, timeout=timeout, transport=transport, sleep=sleep)

    @property
    def base_url(self) -> str:
        return self._transport.base_url

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ----------------------------------------------------------------------------------- files

    def upload_file(self, path: str | Path, *, purpose: str = "dataset") -> File:
        """Upload a local file; `purpose` is `dataset`, `corpus` or `calibration`. Raises SpecError without the file."""
        source = Path(path)
        if not source.is_file():
            raise SpecError(f"no such file: {source}")
        with source.open("rb") as stream:
            response = self._transport.request(
                "POST",
                "/v1/files",
                files={"file": (source.name, stream, "application/octet-stream")},
                data={"purpose": purpose},
                timeout=UPLOAD_TIMEOUT_SECONDS,
            )
        return _parsed(File, _json(response))

    def files(self, *, limit: int | None = None) -> list[File]:
        """Uploaded files, newest first."""
        return list(self._pages(File, "/v1/files", limit))

    def delete_file(self, file_id: str) -> None:
        """Delete an uploaded file that no unfinished job uses."""
        self._transport.request("DELETE", f"/v1/files/{_segment(file_id)}")

    # ---------------------------------------------------------------------------------- models

    def models(self, *, limit: int | None = None) -> list[Model]:
        """Models that a job may name: those under the models root and students made here."""
        return list(self._pages(Model, "/v1/models", limit))

    # ------------------------------------------------------------------------------------ jobs

    def create_job(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job. The key (made here when left out) makes a repeated call one job, whatever the network does."""
        response = self._transport.request(
            "POST",
            "/v1/jobs",
            json=dict(spec),
            headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
            idempotent=True,
        )
        return _parsed(Job, _json(response))

    def job(self, job_id: str) -> Job:
        return _parsed(Job, _json(self._transport.request("GET", self._path(job_id))))

    def jobs(
        self, *, state: str | None = None, metadata: Mapping[str, str] | None = None, limit: int | None = None
    ) -> list[Job]:
        """Jobs, newest first."""
        filters = {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
        if state is not None:
            filters["state"] = state
        return list(self._pages(Job, "/v1/jobs", limit, **filters))

    def cancel(self, job_id: str, *, keep: str = "best") -> Job:
        """Ask for the end of a job; `keep` is the checkpoint that outlives it: `best`, `last` or `none`."""
        return self._verb(job_id, "cancel", {"keep": keep}, idempotent=True)

    def pause(self, job_id: str) -> Job:
        """Ask the job to save and give its slot free; `resume` continues it."""
        return self._verb(job_id, "pause", idempotent=True)

    def resume(self, job_id: str) -> Job:
        return self._verb(job_id, "resume", idempotent=True)

    def retry(self, job_id: str, *, start_from: str = "checkpoint") -> Job:
        """A new attempt of a failed or expired job, from its newest valid `checkpoint` or from the `start`."""
        return self._verb(job_id, "retry", {"from": start_from})

    def fork(
        self,
        job_id: str,
        *,
        checkpoint: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """A new job that begins from a checkpoint of this one, the newest when left out.

        `overrides` are merged into this job's spec (RFC 7386), such as `{"training": {"max_steps": 2000}}`.
        """
        response = self._transport.request(
            "POST",
            self._path(job_id, "fork"),
            json={"checkpoint": checkpoint, "overrides": dict(overrides or {})},
            headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
            idempotent=True,
        )
        return _parsed(Job, _json(response))

    def update(
        self,
        job_id: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        priority: int | None = None,
        max_runtime_seconds: int | None = None,
    ) -> Job:
        """Change what is given, whatever anybody else has changed meanwhile."""
        given = {"name": name, "metadata": metadata, "priority": priority, "max_runtime_seconds": max_runtime_seconds}
        patch = {field: value for field, value in given.items() if value is not None}
        headers = {"If-Match": "*"}
        response = self._transport.request("PATCH", self._path(job_id), json=patch, headers=headers, idempotent=True)
        return _parsed(Job, _json(response))

    def delete(self, job_id: str) -> None:
        """Delete a finished job with all its files."""
        self._transport.request("DELETE", self._path(job_id))

    def _verb(self, job_id: str, verb: str, body: Mapping[str, Any] | None = None, *, idempotent: bool = False) -> Job:
        response = self._transport.request("POST", self._path(job_id, verb), json=body, idempotent=idempotent)
        return _parsed(Job, _json(response))

    # ------------------------------------------------------------------- what a job leaves behind

    def events(self, job_id: str, *, after: int | None = None, limit: int | None = None) -> list[Event]:
        """Events in their order, those after the sequence number `after`."""
        start = {} if after is None else {"after": str(after)}
        return list(self._pages(Event, self._path(job_id, "events"), limit, cursor="seq", **start))

    def metrics(
        self, job_id: str, *, names: Iterable[str] | None = None, since_step: int | None = None
    ) -> list[MetricPoint]:
        """Measurements by step; all names when `names` is left out."""
        parameters: dict[str, str] = {}
        if names is not None:
            parameters["names"] = ",".join(names)
        if since_step is not None:
            parameters["since_step"] = str(since_step)
        return list(self._pages(MetricPoint, self._path(job_id, "metrics"), None, **parameters))

    def attempts(self, job_id: str) -> list[Attempt]:
        """Every attempt, oldest first: where it ran and how it ended."""
        body = _json(self._transport.request("GET", self._path(job_id, "attempts")))
        return [_parsed(Attempt, item) for item in body["data"]]

    def checkpoints(self, job_id: str, *, limit: int | None = None) -> list[Checkpoint]:
        """Checkpoints of a job, newest first."""
        return list(self._pages(Checkpoint, self._path(job_id, "checkpoints"), limit))

    def checkpoint(self, job_id: str, checkpoint_id: str) -> Checkpoint:
        return _parsed(Checkpoint, _json(self._transport.request("GET", self._checkpoint_path(job_id, checkpoint_id))))

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
        return _parsed(Checkpoint, _json(self._transport.request("PATCH", path, json=patch, idempotent=True)))

    def delete_checkpoint(self, job_id: str, checkpoint_id: str) -> None:
        """Delete one that is neither pinned nor where an unfinished fork begins or an attempt goes on."""
        self._transport.request("DELETE", self._checkpoint_path(job_id, checkpoint_id))

    def logs(self, job_id: str, *, attempt: int | None = None, stream: str = "stderr", offset: int = 0) -> LogChunk:
        """The trainer's output (`stderr` or `stdout`) from byte `offset` on, as much as the service sends at once.

        `attempt` is the newest when left out.
        """
        parameters = {"stream": stream, "offset": str(offset)}
        if attempt is not None:
            parameters["attempt"] = str(attempt)
        return _parsed(LogChunk, _json(self._transport.request("GET", self._path(job_id, "logs"), params=parameters)))

    def artifact(self, job_id: str) -> Manifest:
        """The files of the finished student with their sizes and sha256."""
        return _parsed(Manifest, _json(self._transport.request("GET", self._path(job_id, "artifact"))))

    def download(self, job_id: str, folder: str | Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
        """Fetch the student into `folder` and return it: see `minillm.download.download_student`."""
        return download_student(
            self._transport, self._path(job_id, "artifact"), Path(folder), progress=progress, sleep=self._sleep
        )

    # --------------------------------------------------------------------------------- waiting

    def watch(self, job_id: str, *, interval: float = 1.0, patience: float = 120.0) -> Iterator[Job]:
        """The job now and after each change, until it is terminal; polls with the entity tag of the last answer.

        An outage of the service ends it (Unreachable) only after `patience` seconds.
        """
        etag: str | None = None
        silent_since: float | None = None
        while True:
            try:
                response = self._transport.request("GET", self._path(job_id), headers={"If-None-Match": etag})
            except Unreachable:
                now = time.monotonic()
                silent_since = silent_since if silent_since is not None else now
                if now - silent_since >= patience:
                    raise
                self._sleep(interval)
                continue
            silent_since = None
            if response.status_code != httpx.codes.NOT_MODIFIED:
                etag = response.headers.get("etag")
                job = _parsed(Job, _json(response))
                yield job
                if job.is_terminal:
                    return
            self._sleep(interval)

    def wait(self, job_id: str, *, timeout: float | None = None, interval: float = 1.0) -> Job:
        """The job once it is terminal, in whichever way. Raises TimeoutError after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not (job := self.job(job_id)).is_terminal:
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"{job_id} is still {job.state} after {timeout:g} seconds")
            self._sleep(interval)
        return job

    # --------------------------------------------------------------------------------- inside

    @staticmethod
    def _path(job_id: str, *more: str) -> str:
        return "/".join(["/v1/jobs", _segment(job_id), *more])

    def _checkpoint_path(self, job_id: str, checkpoint_id: str) -> str:
        return self._path(job_id, "checkpoints", _segment(checkpoint_id))

    def _pages(
        self, type_: type[Answer], path: str, limit: int | None, *, cursor: str = "id", **parameters: str
    ) -> Iterator[Answer]:
        """Items of a list, page after page, `limit` at most."""
        left = limit
        while left is None or left > 0:
            size = 100 if left is None else min(left, 100)
            body = _json(self._transport.request("GET", path, params={**parameters, "limit": str(size)}))
            items = body["data"][:size]
            yield from (_parsed(type_, item) for item in items)
            if not body.get("has_more") or not items:
                return
            parameters["after"] = str(body.get("last_id") or items[-1][cursor])
            left = None if left is None else left - len(items)
