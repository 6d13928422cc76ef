"""Jobs: making, watching and steering them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from minillm.api.requests import Pages, Requests, json_of, parsed, query
from minillm.errors import Unreachable
from minillm.types import DryRun, Job, NewJob


class JobMethods(Requests):
    def create_job(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> NewJob:
        """Submit a job. The key (made here when left out) makes a repeated call one job, whatever the network does."""
        return self._once(NewJob, "/v1/jobs", dict(spec), idempotency_key)

    def dry_run(self, spec: Mapping[str, Any]) -> DryRun:
        """What the service finds in a spec, with every default filled in; it makes no job."""
        return self._post(DryRun, "/v1/jobs?dry_run=true", dict(spec), idempotent=True)

    def job(self, job_id: str) -> Job:
        return self._get(Job, self._job_path(job_id))

    def jobs(
        self, *, state: str | None = None, metadata: Mapping[str, str] | None = None, limit: int | None = None
    ) -> list[Job]:
        """Jobs, newest first."""
        return list(self.iter_jobs(state=state, metadata=metadata, limit=limit))

    def iter_jobs(
        self, *, state: str | None = None, metadata: Mapping[str, str] | None = None, limit: int | None = None
    ) -> Pages[Job]:
        """The same, fetched page by page."""
        filters = {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
        return self._list(Job, "/v1/jobs", {**filters, **query(state=state)}, limit=limit)

    def cancel(self, job_id: str, *, keep: str = "best") -> Job:
        """Ask for the end of a job; `keep` is the checkpoint that outlives it: `best`, `last` or `none`."""
        return self._post(Job, self._job_path(job_id, "cancel"), {"keep": keep}, idempotent=True)

    def pause(self, job_id: str) -> Job:
        """Ask the job to save and give its slot free; `resume` continues it."""
        return self._post(Job, self._job_path(job_id, "pause"), idempotent=True)

    def resume(self, job_id: str) -> Job:
        return self._post(Job, self._job_path(job_id, "resume"), idempotent=True)

    def retry(self, job_id: str, *, start_from: str = "checkpoint") -> Job:
        """A new attempt of a failed or expired job, from its newest valid `checkpoint` or from the `start`."""
        return self._post(Job, self._job_path(job_id, "retry"), {"from": start_from})

    def fork(
        self,
        job_id: str,
        *,
        checkpoint: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> NewJob:
        """A new job that begins from a checkpoint of this one, the newest when left out.

        `overrides` are merged into this job's spec (RFC 7386), such as `{"training": {"max_steps": 2000}}`.
        """
        body = {"checkpoint": checkpoint, "overrides": dict(overrides or {})}
        return self._once(NewJob, self._job_path(job_id, "fork"), body, idempotency_key)

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
        response = self._transport.request(
            "PATCH", self._job_path(job_id), json=patch, headers={"If-Match": "*"}, idempotent=True
        )
        return parsed(Job, json_of(response))

    def delete(self, job_id: str) -> None:
        """Delete a finished job with all its files."""
        self._transport.request("DELETE", self._job_path(job_id))

    def watch(self, job_id: str, *, interval: float = 1.0, patience: float = 120.0) -> Iterator[Job]:
        """The job now and after each change, until it is terminal; polls with the entity tag of the last answer.

        An outage of the service ends it (Unreachable) only after `patience` seconds.
        """
        etag: str | None = None
        silent_since: float | None = None
        while True:
            try:
                response = self._transport.request("GET", self._job_path(job_id), headers={"If-None-Match": etag})
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
                job = parsed(Job, json_of(response))
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
