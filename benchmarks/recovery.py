"""How long until a queued job trains, and until a job goes on whose worker has died? With the default settings.

    python -m benchmarks.recovery [--runs 5] [--database sqlite|postgres]

The service runs as in production: API, two workers, a sweeper and Valkey, each its own process, a tiny job at a
time. Times come from the rows and from the trainer's own events, all by one machine's clock, in seconds; of each the
median and the largest are given. The last line is one JSON object:

    by_message, by_polling    from the job's creation, with the broker and without it:
                              `claimed`, `trainer` (its first event) and `first_step` (of training)
    after_worker_death        from SIGKILL of the worker: `trainer_gone`, `requeued` (the lease has expired and a sweep
                              has seen it), `claimed` (by the other worker), `first_step` (after the checkpoint)
    lease_seconds, poll_seconds, sweep_seconds, retry_base_seconds, runs, database
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks.chaos import tinyjobs
from benchmarks.chaos.stack import Stack, running
from minillm import Client
from store.bytes.runs import Runs
from store.db.database import Database
from store.db.tables import Attempt, Event
from store.settings import Settings
from worker.process.identity import attempt_processes

PATIENCE_SECONDS = 300.0
Times = dict[str, list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    options = parser.parse_args()
    defaults = Settings(data_dir=Path("unused"))
    with running(kind=options.database, workers=2, sweepers=1, settings={}, prepare=tinyjobs.write_inputs) as (
        stack,
        folder,
        _,
    ):
        tinyjobs.references(folder / "references", stack.data_dir, ("sft",))  # compiles what the first run would
        database = Database(stack.database_url)
        with Client(stack.url) as client:
            bench = Bench(stack, client, database)
            result: dict[str, Any] = {"by_message": summary(bench.starts(options.runs))}
            stack.broker.stop()
            stack.broker.wait(20)
            result["by_polling"] = summary(bench.starts(options.runs))
            stack.broker.start()
            result["after_worker_death"] = summary(bench.deaths(options.runs))
        database.dispose()
    for name in ("lease_seconds", "poll_seconds", "sweep_seconds", "retry_base_seconds"):
        result[name] = getattr(defaults, name)
    print(json.dumps({**result, "runs": options.runs, "database": options.database}))
    return 0


class Bench:
    """Jobs of one service, one after the other."""

    def __init__(self, stack: Stack, client: Client, database: Database) -> None:
        self.stack = stack
        self.client = client
        self.database = database
        self.file = client.upload_file(stack.data_dir / "data.jsonl").id

    def starts(self, runs: int) -> Times:
        times: Times = defaultdict(list)
        for _ in range(runs):
            job_id = self.client.create_job(tinyjobs.make_spec("sft", self.file)).id
            self.until(lambda: self.client.job(job_id).is_terminal)  # noqa: B023
            created = self.state_time(job_id, "queued")
            events = self.trainer_events(job_id, 1)
            times["claimed"].append(self.state_time(job_id, "starting") - created)
            times["trainer"].append(_time(events[0]) - created)
            times["first_step"].append(_first_step(events) - created)
        return times

    def deaths(self, runs: int) -> Times:
        times: Times = defaultdict(list)
        for _ in range(runs):
            spec = tinyjobs.make_spec("sft", self.file)
            spec["training"] |= {"max_steps": tinyjobs.ENDLESS_STEPS, "eval_every": tinyjobs.ENDLESS_STEPS}
            job_id = self.client.create_job(spec).id
            self.until(lambda: self.client.checkpoints(job_id))  # noqa: B023
            attempt = self.attempt(job_id, 1)
            died = time.time()
            os.kill(attempt.supervisor_pid, signal.SIGKILL)
            self.until(lambda: not attempt_processes([attempt.id]))  # noqa: B023
            times["trainer_gone"].append(time.time() - died)
            self.until(lambda: self.client.job(job_id).attempt == 2)  # noqa: B023
            self.until(lambda: _has_step(self.trainer_events(job_id, 2)))  # noqa: B023
            times["requeued"].append(self.state_time(job_id, "queued", last=True) - died)
            times["claimed"].append(self.state_time(job_id, "starting", last=True) - died)
            times["first_step"].append(_first_step(self.trainer_events(job_id, 2)) - died)
            self.client.cancel(job_id, keep="none")
            self.until(lambda: self.client.job(job_id).is_terminal)  # noqa: B023
        return times

    def until(self, condition: Callable[[], object]) -> None:
        """Raises TimeoutError."""
        limit = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > limit:
                raise TimeoutError("a job did not come as far as it should")
            self.stack.tick()
            time.sleep(0.05)

    def attempt(self, job_id: str, number: int) -> Attempt:
        with self.database.read() as session:
            return session.scalars(select(Attempt).where(Attempt.job_id == job_id, Attempt.number == number)).one()

    def state_time(self, job_id: str, state: str, *, last: bool = False) -> float:
        """When the job entered a state, for the first or the last time."""
        with self.database.read() as session:
            statement = select(Event.created_at).where(Event.job_id == job_id, Event.type == "state")
            found = session.scalars(statement.where(Event.code == state).order_by(Event.seq)).all()
        return found[-1 if last else 0].timestamp()

    def trainer_events(self, job_id: str, attempt: int) -> list[dict[str, Any]]:
        path = Runs(self.stack.data_dir).attempt(job_id, attempt).events
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]


def _time(event: dict[str, Any]) -> float:
    return dt.datetime.fromisoformat(event["time"]).timestamp()


def _steps(events: list[dict[str, Any]]) -> list[float]:
    return [
        _time(event)
        for event in events
        if event["type"] == "metrics" and event["phase"] == "training" and "loss" in event["values"]
    ]


def _has_step(events: list[dict[str, Any]]) -> bool:
    return bool(_steps(events))


def _first_step(events: list[dict[str, Any]]) -> float:
    return _steps(events)[0]


def summary(times: Times) -> dict[str, dict[str, float]]:
    return {
        name: {"median": round(statistics.median(values), 2), "max": round(max(values), 2)}
        for name, values in times.items()
    }


if __name__ == "__main__":
    sys.exit(main())
