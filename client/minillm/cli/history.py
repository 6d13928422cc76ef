"""Commands that show what happened in a job and what it left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from minillm.api import Client
from minillm.cli.session import CheckpointId, JobId, Json, answered, console, emit, listed, service
from minillm.display import printable, say, series_table, summary_table
from minillm.errors import SpecError
from minillm.types import Event, LogChunk

LOG_POLL_SECONDS = 1.0


def events(
    job_id: JobId,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: Json = False,
) -> None:
    """List what happened to a job, with the reasons."""
    with service(as_json) as client:
        if as_json and not follow_it:
            emit(client.iter_events(job_id).document())
            return
        screen = console()
        for event in client.follow_events(job_id) if follow_it else client.iter_events(job_id):
            if as_json:
                emit(event.raw)
            else:
                say(screen, _event_line(event))


def _event_line(event: Event) -> str:
    when = event.created_at.isoformat(timespec="seconds") if event.created_at else ""
    return f"{when}  {event.level}  {event.code or event.type}  {event.message}".replace("\n", " ").rstrip()


def logs(
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Number of the attempt; the latest when left out.")] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Its standard output instead of its errors.")] = False,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: Json = False,
) -> None:
    """Print what a job's trainer wrote."""
    with service(as_json) as client:
        pieces = _log_pieces(client, job_id, attempt, "stdout" if stdout else "stderr", follow_it)
        if as_json and not follow_it:
            emit(_joined(list(pieces)))
            return
        for piece in pieces:
            if as_json:
                emit(piece.raw)
            else:
                sys.stdout.write(printable(piece.text))
                sys.stdout.flush()


def _log_pieces(client: Client, job_id: str, attempt: int | None, stream: str, follow_it: bool) -> Iterator[LogChunk]:
    """Pieces of the log of one attempt, the last of each reading empty; followed without naming one, of each attempt
    as it begins, to the job's end."""
    number, offset = attempt, 0
    while True:
        # Asked before reading: what was written before a job ended is then read after it is known to have.
        job = client.job(job_id)
        over = not follow_it or job.is_terminal
        if number is None and (job.attempt or over):
            number = job.attempt or 1
        while number is not None:
            piece = client.logs(job_id, attempt=number, stream=stream, offset=offset)
            offset = piece.next_offset
            if piece.text or not follow_it:
                yield piece
            if not piece.text:
                break
        if attempt is None and number is not None and job.attempt > number:
            number, offset = job.attempt, 0
        elif over:
            return
        else:
            time.sleep(LOG_POLL_SECONDS)


def _joined(pieces: list[LogChunk]) -> dict[str, object]:
    """All pieces of a log as one answer."""
    text = "".join(piece.text for piece in pieces)
    return {**pieces[-1].raw, "text": text, "offset": pieces[0].raw.get("offset", 0)}


def metrics(
    job_id: JobId,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="One of the metrics, step by step; may be given again.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Every point as CSV, a column a metric.")] = False,
    as_json: Json = False,
) -> None:
    """Print what a job measured: each metric in a line, or with --name its values by step."""
    with service(as_json) as client:
        if csv and as_json:
            raise SpecError("give one of --csv and --json")
        if csv:
            for piece in client.metrics_csv(job_id, names=name):
                sys.stdout.write(piece)
            return
        points = client.iter_metrics(job_id, names=name)
        if as_json:
            emit(points.document())
        elif name:
            series_table(console(), name, points)
        else:
            summary_table(console(), points)


def attempts(job_id: JobId, as_json: Json = False) -> None:
    """List a job's attempts: where each ran and how it ended."""
    with service(as_json) as client:
        columns = {
            "ATTEMPT": lambda one: one.attempt,
            "STATE": lambda one: one.state,
            "HOST": lambda one: one.host,
            "PID": lambda one: one.pid,
            "STEP": lambda one: one.step,
            "EXIT": lambda one: one.exit_code,
            "SIGNAL": lambda one: one.signal,
            "FAILURE": lambda one: one.failure.code if one.failure else None,
            "STARTED": lambda one: one.started_at,
            "ENDED": lambda one: one.ended_at,
        }
        listed(client.iter_attempts(job_id), as_json, columns)


def checkpoints(job_id: JobId, as_json: Json = False) -> None:
    """List a job's checkpoints, newest first."""
    with service(as_json) as client:
        columns = {
            "ID": lambda one: one.id,
            "PHASE": lambda one: one.phase,
            "STEP": lambda one: one.step,
            "BYTES": lambda one: one.bytes,
            "BEST": lambda one: "best" if one.best else None,
            "PINNED": lambda one: "pinned" if one.pinned else None,
            "EXPIRES": lambda one: one.expires_at,
        }
        listed(client.iter_checkpoints(job_id), as_json, columns)


def pin(job_id: JobId, checkpoint_id: CheckpointId, as_json: Json = False) -> None:
    """Keep a checkpoint as long as its job."""
    with service(as_json) as client:
        changed = client.update_checkpoint(job_id, checkpoint_id, pinned=True)
        answered(changed, as_json, lambda one: f"{one.id} is pinned")


def unpin(job_id: JobId, checkpoint_id: CheckpointId, as_json: Json = False) -> None:
    """Let a pinned checkpoint go the way of the others."""
    with service(as_json) as client:
        changed = client.update_checkpoint(job_id, checkpoint_id, pinned=False)
        answered(changed, as_json, lambda one: f"{one.id} is not pinned")
