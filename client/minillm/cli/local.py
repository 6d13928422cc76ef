"""`up` and `demo`: commands that start a service of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from minillm.cli.session import Json, console, emit, told
from minillm.embedded import EmbeddedService, forward_signals, require


def up(
    data_dir: Annotated[Path, typer.Option(help="Folder of everything the service keeps.")] = Path(
        os.environ.get("MINILLM_DATA_DIR", "data")
    ),
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the API; 0 takes a free one.")] = None,
    as_json: Json = False,
) -> None:
    """Run the whole service here: API, worker, sweeper, broker. Ctrl-C stops all of it.

    With --json it prints where it answers, once it does; what the service says goes to standard error.
    """
    with told(as_json):
        require("worker", "up", "worker,trainer,demo")
    service = EmbeddedService(data_dir, port=port, environment=os.environ, to_stderr=as_json)
    try:
        with told(as_json):
            service.start()
            forward_signals(service)
            if as_json:
                service.ready()
                emit(json.loads((data_dir / "service.json").read_text()))
            status = service.wait()
    finally:
        service.stop()
    raise typer.Exit(status)


def demo(
    data_dir: Annotated[Path, typer.Option(help="Folder of the demo's service.")] = Path(".data/demo"),
    spec: Annotated[Path | None, typer.Option(help="Job to run instead of the demo's own.")] = None,
    as_json: Json = False,
) -> None:
    """Distil a real teacher from start to end, and show what the student learned.

    The last line is one JSON object; with --json it is the only one on standard output.
    """
    from minillm.demo import run_demo

    with told(as_json):
        require("worker", "demo", "worker,trainer,demo")
        status = run_demo(data_dir, spec, console(error=as_json))
    raise typer.Exit(status)
