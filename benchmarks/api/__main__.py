"""How fast does the API answer, beside a bare FastAPI route that returns the same JSON, and does that last as it fills?

    python -m benchmarks.api [--database sqlite|postgres] [--jobs 100000] [--points 5000000] [--clients 1 50 500]

Three servers with the settings of `python -m api`, each its own process on the loopback: the API over many jobs (a
tenth of them queued) and metric points, the API over a thousand jobs, and bare routes. A closed loop of clients asks
one after the other, a slice at a time, so that what else the machine does meets all of them; the fastest slice of each
counts. Every request carries an API key. The jobs belong to ten owners; 100 of one owner's are asked for, a tenth of
which are queued, and what a first request leaves in memory is there. The last line is one JSON object:

    <operation>                   get_job, get_job_304, list, metrics, post_job: for each number of clients
                                  `ours` and `bare`, each {rps, p50_ms, p99_ms, worst_ms, errors}
    <operation>_ratio_to_bare     requests a second with 1 client over those of the bare route with the same JSON
                                  (`get_job_304_ratio`: of answers of 304 over those of the bare route of the job)
    <operation>_ratio_to_least    the same over a bare route that does nothing but send: bytes made beforehand, or 304
    growth, growth_worst          time of a request with 1 client at --jobs jobs over the same at 1,000, and the largest
    posts_at_once                 500 clients that each post one job at once: worst_s, errors, and what a bystander's
                                  GET meanwhile took (bystander_p50_ms, bystander_worst_ms)
    errors                        answers that were none, all in all
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.api.seed import OWNER, Seeded, seed
from benchmarks.chaos.stack import fresh_database
from store.api_keys import ADMIN, KeyRepository, require_keys
from store.db.database import Database
from store.settings import Settings
from worker.embedded.child import start_child

SMALL_JOBS = 1_000
SMALL_POINTS = 50_000
START_SECONDS = 60.0
OPERATIONS = ("get_job", "get_job_304", "list", "metrics", "post_job")


@dataclass
class Server:
    port: int
    key: str | None = None
    seeded: Seeded | None = None
    jobs: list[str] | None = None
    tags: list[str] | None = None

    def get(self, path: str) -> tuple[Any, str]:
        """The document and its entity tag."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer), answer.headers.get("etag", "")

    def request(self, method: str, path: str, body: str = "", **headers: str) -> str:
        lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "accept: */*"]
        if self.key:
            lines.append(f"authorization: Bearer {self.key}")
        if body:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines) + "\r\n\r\n" + body


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=5_000_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 50, 500])
    parser.add_argument("--seconds", type=float, default=0.7, help="of a slice")
    parser.add_argument("--slices", type=int, default=6, help="of each server, operation and number of clients")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        large = stack.enter_context(api(options.database, options.jobs, options.points))
        small = stack.enter_context(api(options.database, SMALL_JOBS, min(SMALL_POINTS, options.points)))
        answers = {name: large.get(path)[0] for name, path in paths(large).items()}
        bare = stack.enter_context(bare_routes(answers))
        result = Bench(large, small, bare, options).run()
    print(json.dumps({"database": options.database, "jobs": options.jobs, "points": options.points, **result}))
    return 0


def paths(server: Server) -> dict[str, str]:
    assert server.jobs is not None and server.seeded is not None
    job = f"/v1/jobs/{server.jobs[0]}"
    metrics = f"/v1/jobs/{server.seeded.measured}/metrics?names=loss&points=200"
    return {"get_job": job, "list": "/v1/jobs?limit=20", "metrics": metrics, "post_job": job}


class Bench:
    def __init__(self, large: Server, small: Server, bare: Server, options: argparse.Namespace) -> None:
        self.large, self.small, self.bare = large, small, bare
        self.options = options
        self.errors = 0

    def run(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        growth: dict[str, float] = {}
        for operation in self.options.operations:
            result[operation] = {}
            for clients in self.options.clients:
                found = self._beside(operation, clients)
                result[operation][str(clients)] = {name: found[name] for name in ("ours", "bare")}
                if clients == min(self.options.clients):
                    ours, bare = found["ours"]["rps"], found["bare"]["rps"]
                    name = f"{operation}_ratio" if operation == "get_job_304" else f"{operation}_ratio_to_bare"
                    result[name] = round(ours / bare, 3)
                    if "least" in found:
                        result[f"{operation}_ratio_to_least"] = round(ours / found["least"]["rps"], 3)
                    growth[operation] = round(found["small"]["rps"] / ours, 2)
                print(f"{operation} with {clients}: {json.dumps(found)}", file=sys.stderr, flush=True)
        result["growth"] = growth
        result["growth_worst"] = max(growth.values())
        result["posts_at_once"] = self._posts_at_once(max(self.options.clients))
        result["errors"] = self.errors
        return result

    def _beside(self, operation: str, clients: int) -> dict[str, dict[str, float]]:
        """Every server in turn, again and again; of each the fastest slice, which is the least disturbed."""
        same_json = operation.removesuffix("_304")
        sides: dict[str, tuple[Server, str]] = {"ours": (self.large, operation), "bare": (self.bare, same_json)}
        if clients == min(self.options.clients):
            sides["small"] = (self.small, operation)
            if operation == "get_job_304":
                sides["least"] = (self.bare, operation)
            elif operation != "post_job":
                sides["least"] = (self.bare, f"{operation}/bytes")
        runs: dict[str, list[dict[str, float]]] = defaultdict(list)
        for server, what in sides.values():
            measure(server, what, min(clients, 10), 0.3)  # what a first request makes is there now
        for _ in range(self.options.slices):
            for name, (server, what) in sides.items():
                runs[name].append(measure(server, what, clients, self.options.seconds))
        self.errors += sum(int(run["errors"]) for name in runs for run in runs[name])
        return {name: max(found, key=lambda run: run["rps"]) for name, found in runs.items()}

    def _posts_at_once(self, clients: int) -> dict[str, float]:
        """A burst, and a bystander."""
        with start(self.large, "get_job", 1, 2.0) as bystander:
            time.sleep(0.3)
            burst = measure(self.large, "post_job", clients, 0.0)
            beside = finished(bystander)
        self.errors += int(burst["errors"] + beside["errors"])
        return {
            "clients": clients,
            "worst_s": round(burst["worst_ms"] / 1000, 3),
            "errors": burst["errors"] + beside["errors"],
            "bystander_p50_ms": beside["p50_ms"],
            "bystander_p99_ms": beside["p99_ms"],
            "bystander_worst_ms": beside["worst_ms"],
        }


def measure(server: Server, what: str, clients: int, seconds: float) -> dict[str, float]:
    with start(server, what, clients, seconds) as process:
        return finished(process)


@contextlib.contextmanager
def start(server: Server, what: str, clients: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """The clients, in a process of their own."""
    plan = {"host": "127.0.0.1", "port": server.port, "clients": clients, "seconds": seconds, **requests(server, what)}
    command = [sys.executable, "-m", "benchmarks.api.load"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(plan))
        process.stdin.close()
        yield process


def finished(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdout is not None
    found = json.loads(process.stdout.read())
    latencies = found["latencies"] or [0.0]
    return {
        "rps": round(found["requests"] / found["seconds"], 1),
        "p50_ms": round(statistics.median(latencies) * 1000, 3),
        "p99_ms": round(latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1000, 3),
        "worst_ms": round(found["worst"] * 1000, 1),
        "errors": found["errors"],
    }


def requests(server: Server, what: str) -> dict[str, Any]:
    operation, _, form = what.partition("/")
    if server.seeded is None:
        if operation == "get_job_304":
            return {"requests": [server.request("GET", "/get_job/304", if_none_match='"1"')], "expected": 304}
        if operation == "post_job":
            return {"requests": [server.request("POST", "/post_job", "{}")], "expected": 201}
        return {"requests": [server.request("GET", f"/{operation}/{form}".rstrip("/"))], "expected": 200}
    assert server.jobs is not None and server.tags is not None
    if operation == "post_job":
        return {"requests": [server.request("POST", "/v1/jobs", json.dumps(server.seeded.spec))], "expected": 201}
    if operation == "get_job":
        return {"requests": [server.request("GET", f"/v1/jobs/{job}") for job in server.jobs], "expected": 200}
    if operation == "get_job_304":
        pairs = zip(server.jobs, server.tags, strict=True)
        return {
            "requests": [server.request("GET", f"/v1/jobs/{job}", if_none_match=tag) for job, tag in pairs],
            "expected": 304,
        }
    return {"requests": [server.request("GET", paths(server)[operation])], "expected": 200}


@contextlib.contextmanager
def api(kind: str, jobs: int, points: int) -> Iterator[Server]:
    """The API over a seeded database of its own."""
    with tempfile.TemporaryDirectory(prefix="minillm-bench-") as folder, fresh_database(kind, Path(folder)) as url:
        settings = Settings(data_dir=Path(folder), database_url=url, min_free_bytes=0)
        begin = time.monotonic()
        seeded = seed(settings, jobs=jobs, points=points)
        print(f"{seeded.jobs:,} jobs, {seeded.points:,} points: {time.monotonic() - begin:.0f} s", file=sys.stderr)
        database = Database(url)
        with database.write() as session:
            require_keys(settings)
            _, key = KeyRepository(session, settings.secret()).create(owner_id=OWNER, name="bench", scopes=[ADMIN])
        database.dispose()
        environment = {
            "MINILLM_DATA_DIR": folder,
            "MINILLM_DATABASE_URL": url,
            "MINILLM_MIN_FREE_BYTES": "0",
            "MINILLM_BROKER_URL": f"redis+socket://{folder}/nobody.sock",
            "MINILLM_LOG_LEVEL": "ERROR",
            "MINILLM_MAX_QUEUED_JOBS": "1000000",
        }
        with served(["-m", "api"], environment, "/healthz") as port:
            server = Server(port, key, seeded)
            server.jobs = seeded.asked_for
            server.tags = [server.get(f"/v1/jobs/{job}")[1] for job in server.jobs]
            yield server


@contextlib.contextmanager
def bare_routes(answers: dict[str, Any]) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="minillm-bench-") as folder:
        file = Path(folder) / "answers.json"
        file.write_text(json.dumps(answers))
        environment = {"MINILLM_DATA_DIR": folder, "MINILLM_LOG_LEVEL": "ERROR"}
        with served(["-m", "benchmarks.api.bare", str(file)], environment, "/get_job") as port:
            yield Server(port)


@contextlib.contextmanager
def served(command: list[str], environment: dict[str, str], ready: str) -> Iterator[int]:
    """The port of a server that answers at the path `ready`; ended at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    child = start_child(
        [sys.executable, *command, *([str(port)] if "bare" in command[1] else [])],
        environment={**os.environ, **environment, "MINILLM_PORT": str(port)},
        output=None,
    )
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5)
                break
            if child.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {' '.join(command)}")
            time.sleep(0.1)
        yield port
    finally:
        child.terminate()
        child.wait(30)


if __name__ == "__main__":
    sys.exit(main())
