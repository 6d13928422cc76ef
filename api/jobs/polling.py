"""GET /v1/jobs/{id} as those ask it who poll: answered before the router, and from memory while the row is as it was.

What :mod:`api.auth` asked the database says who calls, which version the job has, and whether anything was committed
since the last answer. A job that is not there, or another's, and every other form of the request (HEAD, a query) goes
its usual way to the endpoint, which gives the same answers.
"""

from __future__ import annotations

import re

import anyio.to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.intake import is_sound
from api.http.ranges import none_match
from api.jobs import service
from api.jobs.rendering import Rendering
from api.services import Services
from store.db.database import DATABASE_AWAY
from store.db.errors import NotFound
from store.db.lookups import Answer, JobRow
from store.jobs.repository import JobRepository, time_left
from store.jobs.vocabulary import JobState

_JOB = re.compile(r"/v1/jobs/(job_[0-9a-z]{26})")


def polled_job(scope: Scope) -> str | None:
    """The id of the job that this request asks for and for nothing else, or None."""
    if scope["method"] != "GET" or scope["query_string"]:
        return None
    match = _JOB.fullmatch(scope["path"])
    return match[1] if match else None


class _Route:
    """What the metrics of requests take the name of a route from."""

    path = "/v1/jobs/{job_id}"


class JobPolling:
    def __init__(self, app: ASGIApp, *, services: Services) -> None:
        self.app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            answer: Answer | None = scope["state"].get("answer")
            if answer is not None and answer.job is not None and not answer.job.deleting:
                caller = scope["state"]["caller"]
                header = _if_none_match(scope)
                if answer.job.owner_id == caller.owner_id and (header is None or is_sound(header)):
                    try:
                        found = await self._current(answer, answer.job)
                    except (NotFound, *DATABASE_AWAY):
                        pass  # the endpoint will say so
                    else:
                        await self._send(scope, send, header, *found)
                        return
        await self.app(scope, receive, send)

    async def _current(self, answer: Answer, job: JobRow) -> tuple[str, Rendering, float | None, int | None]:
        """The entity tag, the rendered job, and the two values that change without its row."""
        rendering = self._services.renderings.get(job.id, job.version)
        place = self._services.places.get(answer.stamp, job.id) if job.state == JobState.QUEUED else None
        if rendering is None or (place is None and job.state == JobState.QUEUED):
            return await anyio.to_thread.run_sync(self._read, answer, job)
        return service.etag(job.version, place), rendering, time_left(job, answer.now), place

    def _read(self, answer: Answer, job: JobRow) -> tuple[str, Rendering, float | None, int | None]:
        with self._services.database.read() as session:
            jobs = JobRepository(session)
            row = jobs.get(job.owner_id, job.id)
            rendering = service.rendering(session, self._services.renderings, row)
            place = jobs.queue_position(row)
            if place is not None:
                self._services.places.keep(answer.stamp, {row.id: place})
            return service.etag(row.version, place), rendering, jobs.seconds_left(row), place

    async def _send(
        self,
        scope: Scope,
        send: Send,
        if_none_match: str | None,
        etag: str,
        rendering: Rendering,
        seconds_left: float | None,
        place: int | None,
    ) -> None:
        scope["route"] = _Route
        headers = [(b"etag", etag.encode()), (b"cache-control", b"private, no-cache")]
        if none_match(if_none_match, etag):
            status, body = 304, b""
        else:
            status, body = 200, rendering.with_values(seconds_left, place)
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _if_none_match(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"if-none-match":
            return str(value, "latin-1")
    return None
