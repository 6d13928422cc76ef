"""Commands about models and files: what there is, fetching a student, talking to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from minillm.cli.session import JobId, console, service, told
from minillm.display import say, table
from minillm.embedded import require
from minillm.errors import SpecError


def models() -> None:
    """List the models that a job may name, and what is wrong with the others."""
    with service() as client:
        titles = ("REFERENCE", "KIND", "ARCHITECTURE", "PARAMETERS", "LAYERS", "CONTEXT", "PROBLEMS")
        rows = (
            (
                model.reference,
                model.kind,
                model.architecture,
                model.parameters,
                model.layers,
                model.context_length,
                "; ".join(problem.detail for problem in model.problems),
            )
            for model in client.models()
        )
        table(console(), titles, rows)


def files() -> None:
    """List the uploaded files."""
    with service() as client:
        rows = ((file.id, file.filename, file.purpose, file.lines, file.bytes) for file in client.files())
        table(console(), ("ID", "NAME", "PURPOSE", "LINES", "BYTES"), rows)


def download(
    job_id: JobId,
    folder: Annotated[
        Path | None, typer.Option("--to", help="Folder to make; ./<id> when left out. An interrupted one continues.")
    ] = None,
) -> None:
    """Fetch the finished student, checked against its manifest."""
    with service() as client:
        bar = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        with Progress(*columns, console=bar, disable=not bar.is_terminal) as progress:
            task = progress.add_task("student", total=None)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            path = client.download(job_id, folder or Path(job_id), progress=show)
        say(console(), str(path))


def chat(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of a downloaded student.")],
    prompt: Annotated[str | None, typer.Option(help="Answer this and end.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
) -> None:
    """Talk to a student on this machine."""
    with told():
        require("minillm_core", "chat", "trainer")
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
