"""What the commands share: a client, answers as text or as JSON, errors with an exit status."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from minillm.api import Client, Pages
from minillm.cli import completion
from minillm.display import printable, say, table
from minillm.errors import ApiError, MinillmError, SpecError, Unreachable
from minillm.types import Answer, Job

BAD_INPUT = 2
JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, job_...", autocompletion=completion.job_ids)]
CheckpointId = Annotated[
    str,
    typer.Argument(metavar="CKPT", help="Id of the checkpoint, ckpt_...", autocompletion=completion.checkpoint_ids),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the service's answer as JSON; problems as JSON on standard error.")
]
Kind = TypeVar("Kind", bound=Answer)


def console(*, error: bool = False) -> Console:
    """Made when used, so that it writes to whatever is the standard output (or error) then."""
    return Console(stderr=error)


def emit(document: Any) -> None:
    """One JSON document on a line of its own, at once."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def answered(answer: Kind, as_json: bool, text: Callable[[Kind], str]) -> None:
    """One answer, as it came or as text."""
    if as_json:
        emit(answer.raw)
    else:
        say(console(), text(answer))


def listed(pages: Pages[Kind], as_json: bool, columns: dict[str, Callable[[Kind], Any]]) -> None:
    """A list, as the service would answer it on one page or as a table."""
    if as_json:
        emit(pages.document())
    else:
        table(console(), tuple(columns), (tuple(cell(item) for cell in columns.values()) for item in pages))


@contextlib.contextmanager
def told(as_json: bool = False) -> Iterator[None]:
    """Turn errors into a line for each fault on standard error, or one problem document, and an exit status."""
    try:
        yield
    except SpecError as error:
        refused = problem("invalid_spec", str(error), param=error.field)
        _fail(as_json, BAD_INPUT, refused, str(error))
    except ApiError as error:
        refused = error.problem or problem(error.code, error.detail, status=error.status)
        _fail(as_json, BAD_INPUT if 400 <= error.status < 500 else 1, refused, *error.faults, *_advice(error))
    except Unreachable as error:
        refused = problem("unreachable", str(error), retryable=True)
        advice = "`minillm up` starts a service on this machine; MINILLM_URL names another"
        _fail(as_json, 1, refused, str(error), advice)
    except (MinillmError, TimeoutError) as error:
        _fail(as_json, 1, problem("failed", str(error)), str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def problem(
    code: str, detail: str, *, status: int | None = None, param: str | None = None, retryable: bool = False
) -> dict[str, Any]:
    """A problem (RFC 9457) of the command itself, with the fields of the service's own."""
    return {
        "type": f"urn:minillm:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        **({} if status is None else {"status": status}),
        "detail": detail,
        "code": code,
        "param": param,
        "errors": [{"code": code, "param": param, "detail": detail}],
        "retryable": retryable,
    }


def tell(refused: dict[str, Any]) -> None:
    """The one problem document of a command, on standard error."""
    typer.echo(json.dumps(refused), err=True)


def _fail(as_json: bool, status: int, refused: dict[str, Any], *lines: str) -> None:
    if as_json:
        tell(refused)
    else:
        for line in lines:
            typer.echo(f"error: {printable(line)}", err=True)
    raise typer.Exit(status)


def _advice(error: ApiError) -> list[str]:
    return ["the client sends the key that it finds in MINILLM_API_KEY"] if error.status == 401 else []


@contextlib.contextmanager
def service(as_json: bool = False) -> Iterator[Client]:
    """A client of the service; what goes wrong with it is told."""
    with told(as_json), Client() as client:
        yield client


def ended(job: Job) -> None:
    """Exit 1 for a job that ended without a student."""
    if job.is_terminal and job.state != "succeeded":
        raise typer.Exit(1)
