"""``python -m minillm_core RUN_DIR``: run the job of ``RUN_DIR/spec.json`` and leave the student there.

Exit codes are :class:`minillm_core.spec.ExitCode`. A run folder with checkpoints is continued.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minillm_core.spec import SPEC_FILE, ExitCode, JobSpec, RunContext, load_run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minillm_core", description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", type=Path, help="folder with spec.json and, optionally, run.json")
    run_dir: Path = parser.parse_args(arguments).run_dir
    try:
        job, context = load_run(run_dir)
    except OSError as error:
        print(f"{error.filename}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return ExitCode.USER_ERROR
    except ValidationError as error:
        for fault in error.errors():
            message = fault["msg"].removeprefix("Value error, ")
            where = _pointer(fault["loc"], run_dir, missing=fault["type"] == "missing")
            print(f"{where}: {message}", file=sys.stderr)
        return ExitCode.USER_ERROR
    except ValueError as error:  # a spec of a newer release
        print(error, file=sys.stderr)
        return ExitCode.USER_ERROR
    if "RANK" not in os.environ and job.resources.ranks > 1:
        from minillm_core.launch import launch_ranks

        return launch_ranks(run_dir, job.resources.ranks)
    return run_rank(job, context, run_dir)


def _pointer(location: tuple[int | str, ...], run_dir: Path, *, missing: bool) -> str:
    """Where a fault is in the spec, without the names that pydantic adds for the kinds of value that it tried.

    A name is real where the spec has it at that place; of a field that is ``missing`` the last is real too.
    """
    try:
        here: Any = json.loads((run_dir / SPEC_FILE).read_text())
    except ValueError:
        return "/"
    found: list[str] = []
    for place, name in enumerate(location):
        inside: dict[int | str, Any] = dict(enumerate(here)) if isinstance(here, list) else here
        if isinstance(inside, dict) and name in inside:
            here = inside[name]
        elif not (missing and place == len(location) - 1):
            continue
        found.append(str(name))
    return "/" + "/".join(found)


def run_rank(job: JobSpec, context: RunContext, run_dir: Path) -> int:
    """One rank's share of the run, with every way it can end turned into an exit code."""
    # GNU OpenMP reads this when torch is loaded. Threads that wait by spinning hold the core that the thread they
    # wait for needs, wherever something else runs: a token then takes a hundred times as long. Those that sleep at
    # once have to be woken at every product: half a millisecond lies between the two (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # torch and its friends take seconds to import: a bad spec is told before.
    import transformers

    from minillm_core.by_hand import ToldEvents, stop_on_interrupt
    from minillm_core.deepspeed_ops import shared_memory_op_or_none
    from minillm_core.errors import RunError
    from minillm_core.failures import as_fault
    from minillm_core.rank_failures import RANK_LOST, forget_failures, leave_failure, left_failure
    from minillm_core.run import run_job
    from minillm_core.train.compile_locks import remove_abandoned_locks
    from minillm_core.train.distributed import Ranks
    from minillm_core.train.events import EventLog
    from minillm_core.train.stop import LIFELINE_VARIABLE, StopFlag, Stopped, watch_supervisor

    # Bars that redraw themselves are noise in a log file.
    transformers.utils.logging.disable_progress_bar()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    lifeline = os.environ.get(LIFELINE_VARIABLE)
    watch_supervisor(int(lifeline) if lifeline else context.lifeline_fd)
    stop = StopFlag()
    stop.install()
    by_hand = lifeline is None and context.lifeline_fd is None
    if by_hand:
        stop_on_interrupt()
    remove_abandoned_locks()
    shared_memory_op_or_none()
    try:
        ranks = Ranks.start()
    except RunError as error:
        print(error, file=sys.stderr)
        leave_failure(run_dir, int(os.environ.get("RANK", "0")), error.failure(context.attempt))
        return error.exit_code
    forget_failures(run_dir, ranks.rank)
    # A person who waits would have no sign of life from the file alone.
    events = ToldEvents(run_dir) if by_hand and ranks.main else EventLog(run_dir, enabled=ranks.main)

    def fail(error: RunError) -> int:
        failure = error.failure(context.attempt)
        if error.code == RANK_LOST:
            failure = left_failure(run_dir) or failure
        if ranks.main and failure.code != RANK_LOST:
            events.failure(failure)
        else:
            # Not ours to tell: the main rank or the launcher does, who may know better.
            leave_failure(run_dir, ranks.rank, failure)
        return error.exit_code

    try:
        run_job(job, context, run_dir, ranks, events, stop)
    except Stopped as stopped:
        events.message("info", "stopped", str(stopped))
        return ExitCode.STOPPED
    except RunError as error:
        print(error, file=sys.stderr)
        return fail(error)
    except Exception as error:
        traceback.print_exc()
        return fail(as_fault(error))
    finally:
        events.close()
    ranks.close()
    return ExitCode.DONE


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after a failure the other ranks may still wait in a collective, and the
    # interpreter's own shutdown would wait with them.
    os._exit(code)
