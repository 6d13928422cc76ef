"""Rows of a job's history as they go out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy.orm import Session

from api.history.logs import LogSource, Stream, log_piece, log_source
from api.history.schemas import AttemptOut, EventOut, LogOut, MetricOut
from api.http.problems import NotFound
from api.jobs.service import live_job
from api.services import Services
from minillm_core.spec import Failure
from store.db.tables import Attempt, Event, Job
from store.jobs.events import EventRepository
from store.jobs.metrics import StepMetrics
from store.jobs.repository import JobRepository
from store.jobs.transitions import TERMINAL

LOG_CHUNK_BYTES = 1 << 20
_STREAM_BATCH = 500


def event_out(event: Event) -> EventOut:
    return EventOut(
        id=event.id,
        object="job.event",
        seq=event.seq,
        type=event.type,
        level=event.level,
        code=event.code,
        message=event.message,
        data=event.data,
        attempt=event.attempt,
        created_at=event.created_at,
    )


def read_events(services: Services, owner_id: str, job_id: str, after: int) -> tuple[list[EventOut], bool]:
    """Events after a sequence number, and whether the job was finished before they were read."""
    with services.database.read() as session:
        job = live_job(session, owner_id, job_id)
        found = EventRepository(session).list(job, after=after, limit=_STREAM_BATCH)
        return [event_out(event) for event in found.items], job.state in TERMINAL and not found.has_more


def metric_points(rows: Iterable[StepMetrics]) -> Iterator[MetricOut]:
    for row in rows:
        yield MetricOut(
            attempt=row.attempt, phase=row.phase, step=row.step, values=row.values, created_at=row.created_at
        )


def attempt_out(row: Attempt) -> AttemptOut:
    return AttemptOut(
        id=row.id,
        object="job.attempt",
        attempt=row.number,
        state=str(row.state),
        worker_id=row.worker_id,
        host=row.host,
        pid=row.pid,
        exit_code=row.exit_code,
        signal=row.signal,
        failure=Failure.model_validate(row.failure) if row.failure is not None else None,
        phase=row.phase,
        step=row.step,
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
        ended_at=row.ended_at,
    )


def job_log(
    services: Services, session: Session, job: Job, attempt: int | None, stream: Stream
) -> tuple[int, LogSource]:
    """The number of the attempt (the newest for None) and its log. Raises NotFound for one that never was."""
    number = attempt if attempt is not None else job.attempt
    if number == 0:
        raise NotFound("The job has not started: there is no log yet.", code="no_log")
    row = JobRepository(session).attempt(job, number)
    return number, log_source(services.settings.run_dir(job.id, number) / f"{stream}.log", row.log_tail)


def log_out(number: int, source: LogSource, stream: Stream, offset: int) -> LogOut:
    piece = log_piece(source, offset, LOG_CHUNK_BYTES)
    return LogOut(
        object="job.log",
        attempt=number,
        stream=stream,
        source=source.kind,
        text=piece.text,
        offset=piece.offset,
        next_offset=piece.next_offset,
        size=source.size,
    )
