"""Commands that make jobs, watch them and steer them."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from minillm.api import Client
from minillm.cli.session import JobId, console, ended, service
from minillm.display import duration, follow, plain_line, say, table
from minillm.errors import ApiError, MinillmError, SpecError
from minillm.specfile import LOCAL_FILES, local_files, read_spec, with_files
from minillm.types import Job


def submit(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Job spec, YAML or JSON.")],
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
) -> None:
    """Submit a job; local files that it names are uploaded first."""
    with service() as client:
        wanted = read_spec(spec)
        ids = {}
        for field, path in local_files(wanted, spec.parent).items():
            try:
                uploaded = client.upload_file(path, purpose=LOCAL_FILES[field])
            except ApiError as error:
                if error.status < 500:  # the spec's field, not the upload's
                    raise SpecError(f"{path.name}: {error.detail} ({error.code})", field) from error
                raise
            say(Console(stderr=True), f"uploaded {path.name} as {uploaded.id}")
            ids[field] = uploaded.id
        try:
            job = client.create_job(with_files(wanted, ids))
        except ApiError as error:
            if error.status == 422:  # no job was made: nothing names the files that were uploaded for it
                for file_id in ids.values():
                    with contextlib.suppress(MinillmError):
                        client.delete_file(file_id)
            raise
        say(console(), job.id)
        if watch_it:
            _watch(client, job.id)


def _watch(client: Client, job_id: str) -> None:
    """Follow a job to its end, and on a terminal say what may come next."""
    screen = console()
    try:
        job = follow(client.watch(job_id), screen)
    except KeyboardInterrupt:
        say(Console(stderr=True), f"The job goes on: `minillm watch {job_id}` looks again, `minillm cancel` ends it.")
        raise
    if screen.is_terminal and job.state == "succeeded":
        say(screen, f"`minillm download {job_id}` fetches the student.")
    ended(job)


def jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs shown.")] = 20,
) -> None:
    """List jobs, newest first."""
    with service() as client:
        titles = ("ID", "NAME", "STATE", "PHASE", "DONE", "LEFT", "CREATED")
        table(console(), titles, (_job_row(job) for job in client.jobs(state=state, limit=limit)))


def _job_row(job: Job) -> tuple[str | datetime | None, ...]:
    left = job.progress.seconds_left
    return (
        job.id,
        job.name,
        job.state,
        None if job.is_terminal else job.phase,
        f"{job.progress.fraction:.0%}",
        None if left is None or job.is_terminal else duration(left),
        job.created_at,
    )


def watch(job_id: JobId) -> None:
    """Follow a job until it ends: phase, step, loss, reverse KL, ROUGE-L, tokens per second, time left."""
    with service() as client:
        _watch(client, job_id)


def cancel(
    job_id: JobId,
    keep: Annotated[str, typer.Option(help="Checkpoint that outlives the job: best, last or none.")] = "best",
) -> None:
    """Ask for the end of a job."""
    with service() as client:
        say(console(), plain_line(client.cancel(job_id, keep=keep)))


def pause(job_id: JobId) -> None:
    """Let a job save and give its slot free."""
    with service() as client:
        say(console(), plain_line(client.pause(job_id)))


def resume(job_id: JobId) -> None:
    """Put a paused job back into the queue."""
    with service() as client:
        say(console(), plain_line(client.resume(job_id)))


def retry(
    job_id: JobId,
    start: Annotated[bool, typer.Option("--from-start", help="Begin again, not at the newest checkpoint.")] = False,
) -> None:
    """Try a failed or expired job again."""
    with service() as client:
        say(console(), plain_line(client.retry(job_id, start_from="start" if start else "checkpoint")))


def fork(
    job_id: JobId,
    checkpoint: Annotated[str | None, typer.Option(help="Where it begins; the newest when left out.")] = None,
    overrides: Annotated[
        Path | None, typer.Option(help="YAML or JSON: fields of the job to change, nested as in a spec.")
    ] = None,
) -> None:
    """Make a new job from a checkpoint of another; prints its id."""
    with service() as client:
        changed = read_spec(overrides) if overrides is not None else None
        say(console(), client.fork(job_id, checkpoint=checkpoint, overrides=changed).id)


def change(
    job_id: JobId,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    priority: Annotated[int | None, typer.Option(help="From -100 to 100; higher runs first.")] = None,
    max_runtime: Annotated[int | None, typer.Option(help="Seconds from the first start, over all attempts.")] = None,
) -> None:
    """Change a job's name, priority or time limit."""
    with service() as client:
        job = client.update(job_id, name=name, priority=priority, max_runtime_seconds=max_runtime)
        say(console(), plain_line(job))


def delete(job_id: JobId) -> None:
    """Delete a finished job with its checkpoints and its student."""
    with service() as client:
        client.delete(job_id)
        say(console(), f"{job_id} is deleted")
