"""The `minillm` command. Exit status: 0 done, 1 it went wrong, 2 bad input, 130 interrupted."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from client.api import MinillmClient
from client.display import duration, follow, plain_line, printable, say, table
from client.embedded import EmbeddedService, forward_signals
from client.errors import ApiError, MinillmError, SpecError
from client.specfile import LOCAL_FILES, local_files, read_spec, with_files
from client.types import Job

BAD_INPUT = 2
LOG_POLL_SECONDS = 1.0

app = typer.Typer(
    name="minillm",
    help="Distil a large language model into a small one. The service is found at MINILLM_URL "
    "(default http://127.0.0.1:8000), with the key in MINILLM_API_KEY.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, job_...")]
CheckpointId = Annotated[str, typer.Argument(metavar="CKPT", help="Id of the checkpoint, ckpt_...")]


def _console() -> Console:
    """Made when used, so that it writes to whatever is the standard output then."""
    return Console()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn errors into one line on standard error and an exit status."""
    try:
        yield
    except SpecError as error:
        _fail(str(error), BAD_INPUT)
    except ApiError as error:
        _fail(str(error), BAD_INPUT if 400 <= error.status < 500 else 1)
    except (MinillmError, TimeoutError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _fail(message: str, status: int) -> None:
    typer.echo(f"error: {printable(message)}", err=True)
    raise typer.Exit(status)


@contextlib.contextmanager
def _service() -> Iterator[MinillmClient]:
    with _told(), MinillmClient() as client:
        yield client


def _ended(job: Job) -> None:
    """Exit 1 for a job that ended without a student."""
    if job.is_terminal and job.state != "succeeded":
        raise typer.Exit(1)


@app.command()
def up(
    data_dir: Annotated[Path, typer.Option(help="Folder of everything the service keeps.")] = Path(
        os.environ.get("MINILLM_DATA_DIR", "data")
    ),
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the API; 0 takes a free one.")] = None,
) -> None:
    """Run the whole service here: API, worker, sweeper, broker. Ctrl-C stops all of it."""
    service = EmbeddedService(data_dir, port=port, environment=os.environ)
    try:
        with _told():
            service.start()
            forward_signals(service)
            status = service.wait()
    finally:
        service.stop()
    raise typer.Exit(status)


@app.command()
def demo(
    data_dir: Annotated[Path, typer.Option(help="Folder of the demo's service.")] = Path(".data/demo"),
    spec: Annotated[Path | None, typer.Option(help="Job to run instead of the demo's own.")] = None,
) -> None:
    """Distil a real teacher from start to end, and show what the student learned."""
    from client.demo import run_demo

    with _told():
        status = run_demo(data_dir, spec, _console())
    raise typer.Exit(status)


@app.command()
def submit(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Job spec, YAML or JSON.")],
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
) -> None:
    """Submit a job; local files that it names are uploaded first."""
    with _service() as client:
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
        job = client.create_job(with_files(wanted, ids))
        if watch_it:
            say(_console(), job.id)
            _ended(follow(client.watch(job.id), _console()))
        else:
            say(_console(), job.id)


@app.command()
def jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs shown.")] = 20,
) -> None:
    """List jobs, newest first."""
    with _service() as client:
        titles = ("ID", "NAME", "STATE", "PHASE", "DONE", "LEFT", "CREATED")
        table(_console(), titles, (_job_row(job) for job in client.jobs(state=state, limit=limit)))


def _job_row(job: Job) -> tuple[str | None, ...]:
    left = job.progress.seconds_left
    return (
        job.id,
        job.name,
        job.state,
        None if job.is_terminal else job.phase,
        f"{job.progress.fraction:.0%}",
        None if left is None or job.is_terminal else duration(left),
        job.created_at.isoformat(timespec="seconds") if job.created_at else None,
    )


@app.command()
def watch(job_id: JobId) -> None:
    """Follow a job until it ends: phase, step, loss, reverse KL, ROUGE-L, tokens per second, time left."""
    with _service() as client:
        _ended(follow(client.watch(job_id), _console()))


@app.command()
def logs(
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Number of the attempt; the latest when left out.")] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Its standard output instead of its errors.")] = False,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job's trainer wrote."""
    with _service() as client:
        for text in _log_texts(client, job_id, attempt, "stdout" if stdout else "stderr", follow_it):
            sys.stdout.write(printable(text))
            sys.stdout.flush()


def _log_texts(client: MinillmClient, job_id: str, attempt: int | None, stream: str, follow_it: bool) -> Iterator[str]:
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


@app.command()
def cancel(
    job_id: JobId,
    keep: Annotated[str, typer.Option(help="Checkpoint that outlives the job: best, last or none.")] = "best",
) -> None:
    """Ask for the end of a job."""
    with _service() as client:
        say(_console(), plain_line(client.cancel(job_id, keep=keep)))


@app.command()
def pause(job_id: JobId) -> None:
    """Let a job save and give its slot free."""
    with _service() as client:
        say(_console(), plain_line(client.pause(job_id)))


@app.command()
def resume(job_id: JobId) -> None:
    """Put a paused job back into the queue."""
    with _service() as client:
        say(_console(), plain_line(client.resume(job_id)))


@app.command()
def retry(
    job_id: JobId,
    start: Annotated[bool, typer.Option("--from-start", help="Begin again, not at the newest checkpoint.")] = False,
) -> None:
    """Try a failed or expired job again."""
    with _service() as client:
        say(_console(), plain_line(client.retry(job_id, start_from="start" if start else "checkpoint")))


@app.command()
def fork(
    job_id: JobId,
    checkpoint: Annotated[str | None, typer.Option(help="Where it begins; the newest when left out.")] = None,
    overrides: Annotated[
        Path | None, typer.Option(help="YAML or JSON: fields of the job to change, nested as in a spec.")
    ] = None,
) -> None:
    """Make a new job from a checkpoint of another; prints its id."""
    with _service() as client:
        changed = read_spec(overrides) if overrides is not None else None
        say(_console(), client.fork(job_id, checkpoint=checkpoint, overrides=changed).id)


@app.command()
def change(
    job_id: JobId,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    priority: Annotated[int | None, typer.Option(help="From -100 to 100; higher runs first.")] = None,
    max_runtime: Annotated[int | None, typer.Option(help="Seconds from the first start, over all attempts.")] = None,
) -> None:
    """Change a job's name, priority or time limit."""
    with _service() as client:
        job = client.update(job_id, name=name, priority=priority, max_runtime_seconds=max_runtime)
        say(_console(), plain_line(job))


@app.command()
def attempts(job_id: JobId) -> None:
    """List a job's attempts: where each ran and how it ended."""
    with _service() as client:
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
                one.started_at.isoformat(timespec="seconds") if one.started_at else None,
                one.ended_at.isoformat(timespec="seconds") if one.ended_at else None,
            )
            for one in client.attempts(job_id)
        )
        titles = ("ATTEMPT", "STATE", "HOST", "PID", "STEP", "EXIT", "SIGNAL", "FAILURE", "STARTED", "ENDED")
        table(_console(), titles, rows)


@app.command()
def checkpoints(job_id: JobId) -> None:
    """List a job's checkpoints, newest first."""
    with _service() as client:
        rows = (
            (
                one.id,
                one.phase,
                one.step,
                one.bytes,
                "best" if one.best else None,
                "pinned" if one.pinned else None,
                one.expires_at.isoformat(timespec="seconds") if one.expires_at else None,
            )
            for one in client.checkpoints(job_id)
        )
        table(_console(), ("ID", "PHASE", "STEP", "BYTES", "BEST", "PINNED", "EXPIRES"), rows)


@app.command()
def pin(job_id: JobId, checkpoint_id: CheckpointId) -> None:
    """Keep a checkpoint as long as its job."""
    with _service() as client:
        client.update_checkpoint(job_id, checkpoint_id, pinned=True)
        say(_console(), f"{checkpoint_id} is pinned")


@app.command()
def unpin(job_id: JobId, checkpoint_id: CheckpointId) -> None:
    """Let a pinned checkpoint go the way of the others."""
    with _service() as client:
        client.update_checkpoint(job_id, checkpoint_id, pinned=False)
        say(_console(), f"{checkpoint_id} is not pinned")


@app.command()
def delete(job_id: JobId) -> None:
    """Delete a finished job with its checkpoints and its student."""
    with _service() as client:
        client.delete(job_id)
        say(_console(), f"{job_id} is deleted")


@app.command()
def download(
    job_id: JobId,
    folder: Annotated[
        Path | None, typer.Option("--to", help="Folder to make; ./<id> when left out. An interrupted one continues.")
    ] = None,
) -> None:
    """Fetch the finished student, checked against its manifest."""
    with _service() as client:
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("student", total=None)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            path = client.download(job_id, folder or Path(job_id), progress=show)
        say(_console(), str(path))


@app.command()
def chat(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of a downloaded student.")],
    prompt: Annotated[str | None, typer.Option(help="Answer this and end.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
) -> None:
    """Talk to a student on this machine."""
    with _told():
        if not (path / "config.json").is_file():
            raise SpecError(f"{path} is no folder of a model: it has no config.json", "PATH")
    command = [sys.executable, "-m", "minillm_core.chat", str(path)]
    command += ["--max-new-tokens", str(max_new_tokens), "--temperature", str(temperature)]
    if prompt is not None:
        command += ["--prompt", prompt]
    process = subprocess.Popen(command)
    while True:
        try:
            raise typer.Exit(process.wait())
        except KeyboardInterrupt:
            continue  # it interrupts the answer, and is the chat's to handle


@app.command()
def models() -> None:
    """List the models that a job may name."""
    with _service() as client:
        titles = ("ID", "REFERENCE", "KIND", "ARCHITECTURE", "PARAMETERS", "LAYERS", "CONTEXT")
        rows = (
            (
                model.id,
                model.reference,
                model.kind,
                model.architecture,
                model.parameters,
                model.layers,
                model.context_length,
            )
            for model in client.models()
        )
        table(_console(), titles, rows)


@app.command()
def files() -> None:
    """List the uploaded files."""
    with _service() as client:
        rows = ((file.id, file.filename, file.purpose, file.lines, file.bytes) for file in client.files())
        table(_console(), ("ID", "NAME", "PURPOSE", "LINES", "BYTES"), rows)


@app.command()
def events(job_id: JobId) -> None:
    """List what happened to a job, with the reasons."""
    with _service() as client:
        for event in client.events(job_id):
            when = event.created_at.isoformat(timespec="seconds") if event.created_at else ""
            say(_console(), f"{when}  {event.level}  {event.code or event.type}  {event.message}".replace("\n", " "))
