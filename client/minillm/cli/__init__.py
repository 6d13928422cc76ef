"""The `minillm` command. Exit status: 0 done, 1 it went wrong, 2 bad input, 130 interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from minillm.cli.history import attempts, checkpoints, events, logs, pin, unpin
from minillm.cli.jobs import cancel, change, delete, fork, jobs, pause, resume, retry, submit, watch
from minillm.cli.local import demo, up
from minillm.cli.models import chat, download, files, models
from minillm.version import VERSION

app = typer.Typer(
    name="minillm",
    help="Distil a large language model into a small one. The service is found at MINILLM_URL "
    "(default http://127.0.0.1:8000), with the key in MINILLM_API_KEY.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"minillm {VERSION}")
        raise typer.Exit


@app.callback()
def minillm(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    pass


# In the order of a job's life, which is that of the help.
COMMANDS: tuple[Callable[..., None], ...] = (
    *(up, demo, submit, jobs, watch, events, logs, cancel, pause, resume, retry, fork, change, delete),
    *(attempts, checkpoints, pin, unpin, download, chat, models, files),
)
for command in COMMANDS:
    app.command()(command)
