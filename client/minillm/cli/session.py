"""What the commands share: a client, errors as lines on standard error, and exit statuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from minillm.api import Client
from minillm.display import printable
from minillm.errors import ApiError, MinillmError, SpecError, Unreachable
from minillm.types import Job

BAD_INPUT = 2
JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, job_...")]
CheckpointId = Annotated[str, typer.Argument(metavar="CKPT", help="Id of the checkpoint, ckpt_...")]


def console() -> Console:
    """Made when used, so that it writes to whatever is the standard output then."""
    return Console()


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn errors into a line for each fault on standard error and an exit status."""
    try:
        yield
    except SpecError as error:
        fail(BAD_INPUT, str(error))
    except ApiError as error:
        fail(BAD_INPUT if 400 <= error.status < 500 else 1, *error.faults, *_advice(error))
    except Unreachable as error:
        fail(1, str(error), "`minillm up` starts a service on this machine; MINILLM_URL names another")
    except (MinillmError, TimeoutError) as error:
        fail(1, str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _advice(error: ApiError) -> list[str]:
    return ["the client sends the key that it finds in MINILLM_API_KEY"] if error.status == 401 else []


def fail(status: int, *lines: str) -> None:
    for line in lines:
        typer.echo(f"error: {printable(line)}", err=True)
    raise typer.Exit(status)


@contextlib.contextmanager
def service() -> Iterator[Client]:
    """A client of the service; what goes wrong with it is told."""
    with told(), Client() as client:
        yield client


def ended(job: Job) -> None:
    """Exit 1 for a job that ended without a student."""
    if job.is_terminal and job.state != "succeeded":
        raise typer.Exit(1)
