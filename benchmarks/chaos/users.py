"""Those who use the service while it suffers: each verb of a job's life, and what must come of it."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos import tinyjobs
from minillm import ApiError, Client, MinillmError

TIMEOUT_SECONDS = 5.0
AGAIN_SECONDS = 1.0


@dataclass
class Accepted:
    """A job that the service has said yes to, and what it must become."""

    id: str
    kind: str
    ends: frozenset[str] = frozenset({"succeeded"})
    keep: str | None = None
    """With a cancel that was accepted: what was asked to outlive it."""
    deleted: bool = False
    origin: str | None = None
    """The job whose checkpoint it begins from."""


_PLANS = ("plain", "pause", "cancel", "limit", "delete", "fork")
_SHARES = (46, 14, 16, 6, 8, 10)


class Users:
    """A thread that does what each job's plan says, however often the service must be asked."""

    def __init__(self, url: str, dataset: Path, *, jobs: int, seconds: float, seed: int) -> None:
        """``jobs`` jobs are submitted over ``seconds`` seconds."""
        self._client = Client(url, timeout=TIMEOUT_SECONDS)
        self._random = random.Random(seed)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="users", daemon=True)
        self.accepted: dict[str, Accepted] = {}
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self._upload(dataset)
        for index in range(jobs):
            # The first few at once, so that the workers have something to do.
            self._at(0.0 if index < 4 else seconds * index / jobs, lambda index=index: self._submit(index))  # type: ignore[misc]

    def __enter__(self) -> Users:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        self._client.close()

    @property
    def waiting(self) -> int:
        """Wishes that the service has not taken yet, or that are not due."""
        return len(self._due)

    def _upload(self, dataset: Path) -> None:
        self._file = self._client.upload_file(dataset).id

    def _at(self, seconds: float, wish: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), wish))

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            if not self._due or self._due[0][0] > time.monotonic():
                continue
            _, _, wish = self._due[0]
            again = False
            try:
                wish()
            except ApiError as error:
                # 5xx: another time. Anything else would be an answer that the wish should have known how to take.
                again = error.status >= 500 or error.code == "idempotency_in_progress"
                if not again:
                    self.errors.append(f"{error.status} {error}")
            except MinillmError:
                again = True
            heapq.heappop(self._due)
            if again:
                self._at(AGAIN_SECONDS, wish)

    # ------------------------------------------------------------------------------------ wishes

    def _submit(self, index: int) -> None:
        kind = tinyjobs.KINDS[index % len(tinyjobs.KINDS)]
        plan = self._plan(index)
        scheduling: dict[str, int] = {"priority": index % 3 - 1}
        if plan == "limit":
            scheduling["max_runtime_seconds"] = 15
        spec = tinyjobs.make_spec(kind, self._file, **scheduling)
        if plan == "limit":
            spec["training"]["max_steps"] = tinyjobs.ENDLESS_STEPS
        job = self._client.create_job(spec, idempotency_key=f"chaos-{index}")
        accepted = self.accepted[job.id] = Accepted(job.id, kind)
        self.done["submit"] += 1
        draw = self._random.uniform
        if plan == "limit":
            accepted.ends = frozenset({"expired"})
            self._at(15.0, lambda: self._retry(accepted))
        elif plan == "pause":
            self._at(draw(2.0, 30.0), lambda: self._pause(accepted))
        elif plan == "cancel":
            keep = ("best", "last", "none")[index % 3]
            self._at(draw(0.5, 30.0), lambda: self._cancel(accepted, keep))
        elif plan == "fork":
            self._at(draw(5.0, 30.0), lambda: self._pause(accepted, fork=True))
        elif plan == "delete":
            self._at(draw(20.0, 40.0), lambda: self._delete(accepted))

    def _plan(self, index: int) -> str:
        # One of each first, so that a short run has them all.
        if 2 <= index < 2 + len(_PLANS):
            return _PLANS[index - 2]
        return self._random.choices(_PLANS, _SHARES)[0]

    def _pause(self, job: Accepted, *, fork: bool = False) -> None:
        with _fine("job_finished"):
            self._client.pause(job.id)
            self.done["pause"] += 1
            then = self._fork if fork else self._resume
            self._at(self._random.uniform(2.0, 12.0), lambda: then(job))

    def _fork(self, job: Accepted) -> None:
        """Make another from its newest checkpoint once it is paused: until then its trainer might remove that one."""
        if self._client.job(job.id).state in ("pausing", "running", "starting"):
            self._at(AGAIN_SECONDS, lambda: self._fork(job))
            return
        with _fine("no_checkpoint"):
            fork = self._client.fork(job.id, idempotency_key=f"chaos-fork-{job.id}")
            # The same spec and seed from the same state: the same student.
            self.accepted[fork.id] = Accepted(fork.id, job.kind, origin=job.id)
            self.done["fork"] += 1
        self._resume(job)

    def _retry(self, job: Accepted) -> None:
        """At once when it has expired: its last trainer may still be alive."""
        if self._client.job(job.id).state != "expired":
            self._at(0.3, lambda: self._retry(job))
            return
        with _fine("not_retryable"):  # a retry whose answer was lost
            self._client.retry(job.id)
            self.done["retry"] += 1

    def _resume(self, job: Accepted) -> None:
        with _fine("job_finished"):
            self._client.resume(job.id)
            self.done["resume"] += 1

    def _cancel(self, job: Accepted, keep: str) -> None:
        with _fine("job_finished"):
            # From here on a cancel may have been taken whose answer was lost.
            job.ends = frozenset({"succeeded", "cancelled"})
            self._client.cancel(job.id, keep=keep)
            job.keep = keep
            self.done["cancel"] += 1

    def _delete(self, job: Accepted) -> None:
        if not job.deleted and not self._client.job(job.id).is_terminal:
            self._at(3.0, lambda: self._delete(job))
            return
        job.deleted = True
        with _fine("not_found"):  # a deletion whose answer was lost
            self._client.delete(job.id)
        self.done["delete"] += 1


@contextlib.contextmanager
def _fine(code: str) -> Iterator[None]:
    """An answer with this code is as good as a yes."""
    try:
        yield
    except ApiError as error:
        if error.code != code:
            raise
