"""Does a job survive everything? The real service, real tiny training jobs, random faults, and every invariant after.

    python -m benchmarks.chaos --minutes 10 --jobs 40 --seed 1 --database sqlite|postgres

API, workers, two sweepers and Valkey run as processes under one data folder on a small disk of its own (a tmpfs,
where mounting is allowed). Meanwhile users submit, pause, resume, fork, cancel, retry and delete jobs over HTTP, and
every few seconds one of the faults of ``faults.py`` strikes. Then the faults end, every job gets the time to finish,
and ``verify.py`` judges. Nothing is a stand-in: each attempt is ``python -m minillm_core`` on a real, tiny model.

The last line is one JSON object:

    jobs, states     accepted jobs, and how they ended
    faults           faults by kind, the users' verbs included
    lost             accepted jobs that are gone or did not end
    double_runs      jobs with two attempts alive at once: by /proc, by their rows, by their events
    orphans          processes of the service or of a trainer that were left after the end
    wrong_states     ends nobody asked for, gaps in events, transitions that are none, folders that do not verify
    weights_differ   students whose weights are not bit for bit those of an undisturbed run of the same spec and seed
    attempts, resumed, failures    attempts, those that went on from a checkpoint, failure codes of the others
    crashes          programs that ended although no fault had ended them
    seconds, database, disk

The exit code is 0 only if the counts from ``lost`` to ``weights_differ`` and ``crashes`` are all 0.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter

from sqlalchemy import select

from benchmarks.chaos import tinyjobs
from benchmarks.chaos.faults import FAULTS, Scene
from benchmarks.chaos.onlooker import Onlooker
from benchmarks.chaos.processes import Watch, left_behind
from benchmarks.chaos.stack import Stack, running
from benchmarks.chaos.users import Users
from benchmarks.chaos.verify import Findings, Tally, check_rows, check_students
from minillm import Client, MinillmError
from store.db.database import Database
from store.db.tables import Attempt

LEASE_SECONDS = 6.0
DISK_MEGABYTES = 512
SETTINGS: dict[str, object] = {
    "lease_seconds": LEASE_SECONDS,
    "heartbeat_seconds": 1.5,
    "poll_seconds": 1.0,
    "sweep_seconds": 0.5,
    "wake_seconds": 3.0,
    "stop_grace_seconds": 15.0,
    "cancel_grace_seconds": 25.0,
    "retry_base_seconds": 0.2,
    "retry_max_seconds": 2.0,
    # Here an attempt is nearly always ended from outside: what bounds the attempts of a bad job is tested elsewhere.
    "max_stalled_attempts": 100,
    # For trainers that are stopped and woken up again: the slow start of a busy machine must not count as a hang.
    "start_watchdog_seconds": 180.0,
    "progress_watchdog_seconds": 90.0,
    "min_free_bytes": 8 << 20,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="time with faults; finishing comes on top")
    parser.add_argument("--jobs", type=int, default=None, help="jobs submitted in that time; four a minute")
    parser.add_argument("--seed", type=int, default=1, help="of the faults, their times and the users' plans")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pace", type=float, default=4.0, help="mean seconds between faults")
    parser.add_argument("--finish-minutes", type=float, default=15.0, help="longest time to finish after the faults")
    options = parser.parse_args()
    jobs = options.jobs if options.jobs is not None else max(8, round(4 * options.minutes))
    began = time.monotonic()
    findings, faults = Findings(), Counter[str]()
    with running(
        kind=options.database,
        workers=options.workers,
        sweepers=2,
        settings=SETTINGS,
        disk_megabytes=DISK_MEGABYTES,
        prepare=tinyjobs.write_inputs,
    ) as (stack, folder, small):
        say(f"the service runs at {stack.url}; working folder {folder}")
        right = tinyjobs.references(folder / "references", stack.data_dir)
        say(f"{len(right)} undisturbed runs are done")
        database = Database(stack.database_url)
        drawn = random.Random(options.seed)
        seconds = 60.0 * options.minutes
        with (
            Watch(stack.runs_dir) as watch,
            Users(
                stack.url, stack.data_dir / "data.jsonl", jobs=jobs, seconds=0.8 * seconds, seed=options.seed
            ) as users,
            Onlooker(stack.valkey.url) as onlooker,
        ):
            scene = Scene(stack, watch, drawn, small, LEASE_SECONDS)
            strike(scene, faults, seconds, options.pace)
            scene.calm()
            say(f"the faults are over: {dict(faults)}")
            finish(stack, users, 60.0 * options.finish_minutes)
            findings.wrong_states.extend(f"an answer that nobody expected: {error}" for error in users.errors)
        with Client(stack.url) as client:
            check_students(client, users.accepted, right, folder / "students", findings)
        for name, code in stack.stop().items():
            # uvicorn ends in order and then by the signal that it was sent.
            if code != 0 and not (name == stack.api.name and code == -signal.SIGTERM):
                findings.wrong_states.append(f"{name} ended with {code} on SIGTERM")
        with database.read() as session:
            tally = check_rows(session, users.accepted, stack.data_dir, scene.corrupted, findings)
            attempt_ids = set(session.scalars(select(Attempt.id)))
        database.dispose()
        findings.double_runs.extend(f"{job}: attempts {attempts} together" for job, attempts in watch.together.items())
        findings.orphans.extend(left_behind(stack.token, attempt_ids, stack.data_dir))
        findings.say()
        for crash in stack.crashes:
            print(f"crash: {crash.program} ended with {crash.code}", file=sys.stderr)
        faults.update({name: number for name, number in users.done.items() if name != "submit"})
        result = summary(findings, tally, faults, stack, len(users.accepted), small)
        result |= {"inspect": onlooker.told()}
        result |= {"seconds": round(time.monotonic() - began), "database": options.database}
        print(json.dumps(result), flush=True)
        good = not any(findings.counts().values()) and not stack.crashes
        if not good:
            raise SystemExit(1)  # through the context, which keeps what there is to look at
    return 0


def strike(scene: Scene, faults: Counter[str], seconds: float, pace: float) -> None:
    """One fault after the other for ``seconds`` seconds, ``pace`` seconds apart on average."""
    names, weights = list(FAULTS), [weight for _, weight in FAULTS.values()]
    until = time.monotonic() + seconds
    next_at = time.monotonic() + pace
    while time.monotonic() < until:
        time.sleep(0.05)
        scene.stack.tick()
        scene.tick()
        if time.monotonic() >= next_at:
            name = scene.random.choices(names, weights)[0]
            if FAULTS[name][0](scene):
                faults[name] += 1
                next_at = time.monotonic() + scene.random.uniform(0.2, 2 * pace - 0.2)


def finish(stack: Stack, users: Users, seconds: float) -> None:
    """Let every job end, at most for ``seconds`` seconds; what is left by then is lost."""
    until = time.monotonic() + seconds
    said_at = 0.0
    with Client(stack.url, timeout=5.0) as client:
        while time.monotonic() < until:
            stack.tick()
            time.sleep(0.2)
            try:
                living = [job for job in client.jobs() if not job.is_terminal]
            except MinillmError:
                continue
            if not living and not users.waiting:
                # Deletions end with the next sweeps.
                deleted = [stack.runs_dir / job.id for job in users.accepted.values() if job.deleted]
                if not any(path.exists() for path in deleted):
                    return
            if time.monotonic() > said_at + 15:
                said_at = time.monotonic()
                say(f"finishing: {len(living)} jobs, {users.waiting} wishes")


def summary(
    findings: Findings, tally: Tally, faults: Counter[str], stack: Stack, jobs: int, small: bool
) -> dict[str, object]:
    return {
        "jobs": jobs,
        "states": dict(tally.states),
        "faults": dict(sorted(faults.items())),
        **findings.counts(),
        "attempts": tally.attempts,
        "resumed": tally.resumed,
        "failures": dict(tally.failures),
        "crashes": len(stack.crashes),
        "disk": f"tmpfs of {DISK_MEGABYTES} MB" if small else "not small: mounting is not allowed",
    }


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
