"""GET /v1/jobs/{id}, and /v1/jobs for the newest, as those ask for them who poll: answered before the router, and from
memory where nothing has changed.

What :mod:`api.auth` asked the database says who calls, which versions the rows have, and whether anything was committed
since the last answer. A job that is not there, or another's, and every other form of the request (HEAD, filters,
cursors) go their usual way to the endpoints, which give the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import anyio.to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import Caller, Polled
from api.http.intake import is_sound
from api.http.pagination import DEFAULT_LIMIT, MAX_LIMIT, page_of_json
from api.http.ranges import none_match
from api.jobs import service
from api.jobs.rendering import etag
from api.services import Services
from store.db.database import DATABASE_AWAY
from store.db.errors import NotFound
from store.db.lookups import Answer, JobRow
from store.jobs.repository import JobRepository
from store.jobs.standing import time_left
from store.jobs.vocabulary import JobState

_JOB = re.compile(r"/v1/jobs/(job_[0-9a-z]{26})")
_LIMIT = re.compile(rb"(?:limit=([1-9][0-9]{0,2}))?")


def polled(scope: Scope) -> Polled | None:
    """What this request asks for, where that is one job or the newest ones and nothing else."""
    if scope["method"] != "GET":
        return None
    if scope["path"] == "/v1/jobs":
        match = _LIMIT.fullmatch(scope["query_string"])
        if match is None:
            return None
        limit = int(match[1]) if match[1] else DEFAULT_LIMIT
        return Polled(newest=limit) if limit <= MAX_LIMIT else None
    job = _JOB.fullmatch(scope["path"])
    return Polled(job_id=job[1]) if job is not None and not scope["query_string"] else None


@dataclass(frozen=True, slots=True)
class _Route:
    """What the metrics of requests take the name of a route from."""

    path: str


_ONE, _LIST = _Route("/v1/jobs/{job_id}"), _Route("/v1/jobs")


class JobPolling:
    def __init__(self, app: ASGIApp, *, services: Services) -> None:
        self.app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            answer: Answer | None = scope["state"].get("answer")
            if answer is not None and (answer.job is not None or answer.newest is not None):
                try:
                    if await self._answered(scope, send, answer):
                        return
                except (NotFound, *DATABASE_AWAY):
                    pass  # nothing is sent yet: the endpoint will say so
        await self.app(scope, receive, send)

    async def _answered(self, scope: Scope, send: Send, answer: Answer) -> bool:
        caller: Caller = scope["state"]["caller"]
        if answer.newest is not None:
            body = await self._list(answer, answer.newest, caller, scope["state"]["polled"].newest)
            await _send(scope, send, _LIST, 200, body, [])
            return True
        job = answer.job
        header = _if_none_match(scope)
        if job is None or job.deleting or job.owner_id != caller.owner_id or not is_sound(header or ""):
            return False
        remembered = self._remembered(answer, job)
        if remembered is None:
            remembered = await anyio.to_thread.run_sync(self._read, answer, job)
        body, tag = remembered
        headers = [(b"etag", tag.encode()), (b"cache-control", b"private, no-cache")]
        if none_match(header, tag):
            await _send(scope, send, _ONE, 304, None, headers)
        else:
            await _send(scope, send, _ONE, 200, body, headers)
        return True

    def _remembered(self, answer: Answer, job: JobRow) -> tuple[bytes, str] | None:
        """The job as it goes out, and its entity tag; None where its row has changed, or its place may have."""
        rendering = self._services.renderings.get(job.id, job.version)
        place = self._services.places.get(answer.stamp, job.id) if job.state == JobState.QUEUED else None
        if rendering is None or (place is None and job.state == JobState.QUEUED):
            return None
        return rendering.with_values(time_left(job, answer.now), place), etag(job.version, place)

    def _read(self, answer: Answer, job: JobRow) -> tuple[bytes, str]:
        with self._services.database.read() as session:
            row = JobRepository(session).get_live(job.owner_id, job.id)
            (found,) = service.shown(session, self._services, [row], answer.stamp)
            return found

    async def _list(self, answer: Answer, jobs: Sequence[JobRow], caller: Caller, limit: int) -> bytes:
        items = []
        for job in jobs[:limit]:
            remembered = self._remembered(answer, job)
            if remembered is None:
                return await anyio.to_thread.run_sync(self._read_list, answer, caller, limit)
            items.append(remembered[0])
        return page_of_json(items, len(jobs) > limit, [job.id for job in jobs[:limit]])

    def _read_list(self, answer: Answer, caller: Caller, limit: int) -> bytes:
        with self._services.database.look() as session:
            found = JobRepository(session).list(caller.owner_id, limit=limit)
            items = service.shown(session, self._services, found.items, answer.stamp)
        return page_of_json([item for item, _ in items], found.has_more, [head.id for head in found.items])


async def _send(
    scope: Scope, send: Send, route: _Route, status: int, body: bytes | None, headers: list[tuple[bytes, bytes]]
) -> None:
    scope["route"] = route
    if body is not None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body or b""})


def _if_none_match(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"if-none-match":
            return str(value, "latin-1")
    return None
