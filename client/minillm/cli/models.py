"""Commands about models and files: what there is, fetching a student, talking to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from minillm.cli.completion import among
from minillm.cli.session import JobId, Json, answered, console, emit, listed, service, told
from minillm.display import say
from minillm.embedded import require
from minillm.errors import SpecError
from minillm.specfile import LOCAL_FILES


def models(as_json: Json = False) -> None:
    """List the models that a job may name, and what is wrong with the others."""
    with service(as_json) as client:
        columns = {
            "REFERENCE": lambda model: model.reference,
            "KIND": lambda model: model.kind,
            "ARCHITECTURE": lambda model: model.architecture,
            "PARAMETERS": lambda model: model.parameters,
            "LAYERS": lambda model: model.layers,
            "CONTEXT": lambda model: model.context_length,
            "PROBLEMS": lambda model: "; ".join(problem.detail for problem in model.problems),
        }
        listed(client.iter_models(), as_json, columns)


def files(as_json: Json = False) -> None:
    """List the uploaded files."""
    with service(as_json) as client:
        columns = {
            "ID": lambda file: file.id,
            "NAME": lambda file: file.filename,
            "PURPOSE": lambda file: file.purpose,
            "LINES": lambda file: file.lines,
            "BYTES": lambda file: file.bytes,
        }
        listed(client.iter_files(), as_json, columns)


def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines or, for a corpus, plain text; UTF-8.")],
    purpose: Annotated[
        str,
        typer.Option(
            help="What a job reads it as: dataset, corpus or calibration.",
            autocompletion=among(*LOCAL_FILES.values()),
        ),
    ] = "dataset",
    as_json: Json = False,
) -> None:
    """Upload a file for jobs to name; prints its id."""
    with service(as_json) as client:
        answered(client.upload_file(file, purpose=purpose), as_json, lambda uploaded: uploaded.id)


def download(
    job_id: JobId,
    folder: Annotated[
        Path | None, typer.Option("--to", help="Folder to make; ./<id> when left out. An interrupted one continues.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch the finished student, checked against its manifest."""
    with service(as_json) as client:
        bar = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        with Progress(*columns, console=bar, disable=as_json or not bar.is_terminal) as progress:
            task = progress.add_task("student", total=None)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            path = client.download(job_id, folder or Path(job_id), progress=show)
        if as_json:
            emit({**client.artifact(job_id).raw, "folder": str(path)})
        else:
            say(console(), str(path))


def chat(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of a downloaded student.")],
    prompt: Annotated[str | None, typer.Option(help="Answer this and end.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Talk to a student on this machine. With --json it answers --prompt, or lines of standard input, as JSON lines."""
    with told(as_json):
        require("minillm_core", "chat", "trainer")
        if not (path / "config.json").is_file():
            raise SpecError(f"{path} is no folder of a model: it has no config.json", "PATH")
    command = [sys.executable, "-m", "minillm_core.chat", str(path)]
    command += ["--max-new-tokens", str(max_new_tokens), "--temperature", str(temperature)]
    if as_json:
        given = None if prompt is None else json.dumps({"prompt": prompt}) + "\n"
        raise typer.Exit(_json_chat([*command, "--jsonl"], given))
    if prompt is not None:
        command += ["--prompt", prompt]
    process = subprocess.Popen(command)
    while True:
        try:
            raise typer.Exit(process.wait())
        except KeyboardInterrupt:
            continue  # it interrupts the answer, and is the chat's to handle


def _json_chat(command: list[str], given: str | None) -> int:
    """Pass answers on as lines, without the first, which describes the model; `given` stands for standard input."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE if given is not None else None, stdout=subprocess.PIPE, text=True
    )
    with process:
        if given is not None and process.stdin is not None:
            process.stdin.write(given)
            process.stdin.close()
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            if number:
                emit(json.loads(line))
    return process.returncode
