"""The `minillm` command. Exit status: 0 done, 1 it went wrong, 2 bad input, 130 interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from minillm.cli.history import attempts, checkpoints, events, logs, metrics, pin, unpin
from minillm.cli.jobs import cancel, change, delete, fork, jobs, pause, resume, retry, show, submit, watch
from minillm.cli.local import demo, up
from minillm.cli.models import chat, download, files, models, upload
from minillm.cli.operations import drain, keys, undrain, workers
from minillm.cli.session import problem, tell
from minillm.version import VERSION


class Commands(TyperGroup):
    """Commands whose misuse is a problem document too where JSON was asked for."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        wants_json = standalone_mode and "--json" in given
        try:
            status = super().main(
                args=args,
                prog_name=prog_name,
                complete_var=complete_var,
                standalone_mode=standalone_mode and not wants_json,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except TyperException as error:
            if not wants_json:
                raise
            tell(problem("usage", error.format_message()))
            sys.exit(error.exit_code)
        if wants_json:
            sys.exit(status if isinstance(status, int) else 0)
        return status


app = typer.Typer(
    name="minillm",
    cls=Commands,
    help="Distil a large language model into a small one. The service is found at MINILLM_URL "
    "(default http://127.0.0.1:8000), with the key in MINILLM_API_KEY.",
    no_args_is_help=True,
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
    *(up, demo, upload, submit, jobs, show, watch, events, logs, metrics),
    *(cancel, pause, resume, retry, fork, change, delete),
    *(attempts, checkpoints, pin, unpin, download, chat, models, files, workers, drain, undrain),
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(keys)
