"""Commands that make jobs, watch them and steer them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from minillm.api import Client
from minillm.cli.completion import STATES, among
from minillm.cli.session import JobId, Json, answered, console, emit, ended, listed, service
from minillm.display import details, dry_run_lines, duration, follow, plain_line, say
from minillm.errors import ApiError, MinillmError, SpecError, dotted
from minillm.specfile import LOCAL_FILES, local_files, read_spec, with_files
from minillm.types import Job, JobWarning


def submit(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Job spec, YAML or JSON.")],
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it, say what it comes to, and make no job.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Submit a job; local files that it names are uploaded first."""
    with service(as_json) as client:
        if dry_run and watch_it:
            raise SpecError("a dry run makes no job to watch: give one of --dry-run and --watch")
        wanted = read_spec(spec)
        ids = _upload(client, wanted, spec.parent, quiet=as_json)
        if dry_run:
            try:
                found = client.dry_run(with_files(wanted, ids))
            finally:
                _forget(client, ids)
            answered(found, as_json, dry_run_lines)
            _warn(found.warnings, quiet=as_json)
            return
        try:
            job = client.create_job(with_files(wanted, ids))
        except ApiError as error:
            if error.status == 422:  # no job was made: nothing names the files that were uploaded for it
                _forget(client, ids)
            raise
        answered(job, as_json, lambda made: made.id)
        _warn(job.warnings, quiet=as_json)
        if watch_it:
            _watch(client, job.id, as_json)


def _upload(client: Client, wanted: dict[str, Any], base: Path, *, quiet: bool) -> dict[str, str]:
    """Upload the local files of a spec: dotted field -> id."""
    ids = {}
    for field, path in local_files(wanted, base).items():
        try:
            uploaded = client.upload_file(path, purpose=LOCAL_FILES[field])
        except ApiError as error:
            if error.status in (413, 422):  # the spec's field, not the upload's
                raise SpecError(f"{path.name}: {error.detail} ({error.code})", field) from error
            raise
        if not quiet:
            say(console(error=True), f"uploaded {path.name} as {uploaded.id}")
        ids[field] = uploaded.id
    return ids


def _forget(client: Client, ids: dict[str, str]) -> None:
    for file_id in ids.values():
        with contextlib.suppress(MinillmError):
            client.delete_file(file_id)


def _warn(warnings: list[JobWarning], *, quiet: bool) -> None:
    """On standard error; with --json they are in the answer."""
    for warning in [] if quiet else warnings:
        where = f"{dotted(warning.param)}: " if warning.param else ""
        say(console(error=True), f"warning: {where}{warning.detail} ({warning.code})")


def _watch(client: Client, job_id: str, as_json: bool) -> None:
    """Follow a job to its end, and on a terminal say what may come next."""
    screen = console()
    if as_json:
        for job in client.watch(job_id):
            emit(job.raw)
    else:
        try:
            job = follow(client.watch(job_id), screen)
        except KeyboardInterrupt:
            advice = f"The job goes on: `minillm watch {job_id}` looks again, `minillm cancel` ends it."
            say(console(error=True), advice)
            raise
        if screen.is_terminal and job.state == "succeeded":
            say(screen, f"`minillm download {job_id}` fetches the student.")
    ended(job)


def jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.", autocompletion=among(*STATES))] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs shown.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    with service(as_json) as client:
        columns = {
            "ID": lambda job: job.id,
            "NAME": lambda job: job.name,
            "STATE": lambda job: job.state,
            "PHASE": lambda job: None if job.is_terminal else job.phase,
            "DONE": lambda job: f"{job.progress.fraction:.0%}",
            "LEFT": _left,
            "CREATED": lambda job: job.created_at,
        }
        listed(client.iter_jobs(state=state, limit=limit), as_json, columns)


def _left(job: Job) -> str | None:
    left = job.progress.seconds_left
    return None if left is None or job.is_terminal else duration(left)


def show(job_id: JobId, as_json: Json = False) -> None:
    """Print one job in full: how it stands, what was asked for, what came out."""
    with service(as_json) as client:
        answered(client.job(job_id), as_json, details)


def watch(job_id: JobId, as_json: Json = False) -> None:
    """Follow a job until it ends: phase, step, loss, reverse KL, ROUGE-L, tokens per second, time left."""
    with service(as_json) as client:
        _watch(client, job_id, as_json)


def cancel(
    job_id: JobId,
    keep: Annotated[
        str,
        typer.Option(
            help="Checkpoint that outlives the job: best, last or none.", autocompletion=among("best", "last", "none")
        ),
    ] = "best",
    as_json: Json = False,
) -> None:
    """Ask for the end of a job."""
    with service(as_json) as client:
        answered(client.cancel(job_id, keep=keep), as_json, plain_line)


def pause(job_id: JobId, as_json: Json = False) -> None:
    """Let a job save and give its slot free."""
    with service(as_json) as client:
        answered(client.pause(job_id), as_json, plain_line)


def resume(job_id: JobId, as_json: Json = False) -> None:
    """Put a paused job back into the queue."""
    with service(as_json) as client:
        answered(client.resume(job_id), as_json, plain_line)


def retry(
    job_id: JobId,
    start: Annotated[bool, typer.Option("--from-start", help="Begin again, not at the newest checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Try a failed or expired job again."""
    with service(as_json) as client:
        answered(client.retry(job_id, start_from="start" if start else "checkpoint"), as_json, plain_line)


def fork(
    job_id: JobId,
    checkpoint: Annotated[str | None, typer.Option(help="Where it begins; the newest when left out.")] = None,
    overrides: Annotated[
        Path | None, typer.Option(help="YAML or JSON: fields of the job to change, nested as in a spec.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a new job from a checkpoint of another; prints its id."""
    with service(as_json) as client:
        changed = read_spec(overrides) if overrides is not None else None
        made = client.fork(job_id, checkpoint=checkpoint, overrides=changed)
        answered(made, as_json, lambda job: job.id)
        _warn(made.warnings, quiet=as_json)


def change(
    job_id: JobId,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    priority: Annotated[int | None, typer.Option(help="From -100 to 100; higher runs first.")] = None,
    max_runtime: Annotated[int | None, typer.Option(help="Seconds from the first start, over all attempts.")] = None,
    as_json: Json = False,
) -> None:
    """Change a job's name, priority or time limit."""
    with service(as_json) as client:
        job = client.update(job_id, name=name, priority=priority, max_runtime_seconds=max_runtime)
        answered(job, as_json, plain_line)


def delete(job_id: JobId, as_json: Json = False) -> None:
    """Delete a finished job with its checkpoints and its student."""
    with service(as_json) as client:
        client.delete(job_id)
        if as_json:
            emit({"id": job_id, "object": "job", "deleted": True})
        else:
            say(console(), f"{job_id} is deleted")
