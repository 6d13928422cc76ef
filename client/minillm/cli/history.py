"""Commands that show what happened in a job and what it left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from minillm.api import Client
from minillm.cli.session import CheckpointId, JobId, console, service
from minillm.display import printable, say, table

LOG_POLL_SECONDS = 1.0


def events(job_id: JobId) -> None:
    """List what happened to a job, with the reasons."""
    with service() as client:
        for event in client.events(job_id):
            when = event.created_at.isoformat(timespec="seconds") if event.created_at else ""
            line = f"{when}  {event.level}  {event.code or event.type}  {event.message}"
            say(console(), line.replace("\n", " ").rstrip())


def logs(
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Number of the attempt; the latest when left out.")] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Its standard output instead of its errors.")] = False,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job's trainer wrote."""
    with service() as client:
        for text in _log_texts(client, job_id, attempt, "stdout" if stdout else "stderr", follow_it):
            sys.stdout.write(printable(text))
            sys.stdout.flush()


def _log_texts(client: Client, job_id: str, attempt: int | None, stream: str, follow_it: bool) -> Iterator[str]:
    """Pieces of the log of one attempt; followed without naming one, of each as it begins, to the job's end."""
    number, offset = attempt, 0
    while True:
        # Asked before reading: what was written before a job ended is then read after it is known to have.
        job = client.job(job_id)
        over = not follow_it or job.is_terminal
        if number is None and (job.attempt or over):
            number = job.attempt or 1
        while number is not None:
            chunk = client.logs(job_id, attempt=number, stream=stream, offset=offset)
            offset = chunk.next_offset
            if not chunk.text:
                break
            yield chunk.text
        if attempt is None and number is not None and job.attempt > number:
            number, offset = job.attempt, 0
        elif over:
            return
        else:
            time.sleep(LOG_POLL_SECONDS)


def attempts(job_id: JobId) -> None:
    """List a job's attempts: where each ran and how it ended."""
    with service() as client:
        rows = (
            (
                one.attempt,
                one.state,
                one.host,
                one.pid,
                one.step,
                one.exit_code,
                one.signal,
                one.failure.code if one.failure else None,
                one.started_at,
                one.ended_at,
            )
            for one in client.attempts(job_id)
        )
        titles = ("ATTEMPT", "STATE", "HOST", "PID", "STEP", "EXIT", "SIGNAL", "FAILURE", "STARTED", "ENDED")
        table(console(), titles, rows)


def checkpoints(job_id: JobId) -> None:
    """List a job's checkpoints, newest first."""
    with service() as client:
        rows = (
            (
                one.id,
                one.phase,
                one.step,
                one.bytes,
                "best" if one.best else None,
                "pinned" if one.pinned else None,
                one.expires_at,
            )
            for one in client.checkpoints(job_id)
        )
        table(console(), ("ID", "PHASE", "STEP", "BYTES", "BEST", "PINNED", "EXPIRES"), rows)


def pin(job_id: JobId, checkpoint_id: CheckpointId) -> None:
    """Keep a checkpoint as long as its job."""
    with service() as client:
        client.update_checkpoint(job_id, checkpoint_id, pinned=True)
        say(console(), f"{checkpoint_id} is pinned")


def unpin(job_id: JobId, checkpoint_id: CheckpointId) -> None:
    """Let a pinned checkpoint go the way of the others."""
    with service() as client:
        client.update_checkpoint(job_id, checkpoint_id, pinned=False)
        say(console(), f"{checkpoint_id} is not pinned")
