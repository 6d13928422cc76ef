"""What a shell offers after a tab: asked of the service for a second at most, nothing where it does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import typer

from minillm.api import Client

PATIENCE_SECONDS = 1.0
MOST = 50

STATES = (
    *("queued", "starting", "running", "pausing", "paused", "cancelling"),
    *("succeeded", "failed", "cancelled", "expired"),
)
Offer = list[tuple[str, str]]
"""Words with what they are; a shell that cannot show the second part leaves it out."""


def _asked(question: Callable[[Client], Iterable[tuple[str, str]]], incomplete: str) -> Offer:
    """The answer's words that begin as typed. In a thread: looking up a name has no time limit of its own."""
    found: Offer = []

    def ask() -> None:
        try:
            with Client(timeout=PATIENCE_SECONDS, max_retries=0) as client:
                found.extend(question(client))
        except Exception:  # whatever it is, the prompt of a shell is no place to tell it
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)
    return [(word, meaning) for word, meaning in list(found) if word.startswith(incomplete)]


def job_ids(incomplete: str) -> Offer:
    return _asked(
        lambda client: [(job.id, " ".join(filter(None, (job.state, job.name)))) for job in client.jobs(limit=MOST)],
        incomplete,
    )


def checkpoint_ids(ctx: typer.Context, incomplete: str) -> Offer:
    job_id = ctx.params.get("job_id")
    if not job_id:
        return []
    return _asked(
        lambda client: [(one.id, f"step {one.step}") for one in client.checkpoints(job_id, limit=MOST)], incomplete
    )


def worker_ids(incomplete: str) -> Offer:
    return _asked(lambda client: [(worker.id, worker.host) for worker in client.workers()], incomplete)


def key_ids(incomplete: str) -> Offer:
    return _asked(lambda client: [(key.id, key.name) for key in client.keys(limit=MOST)], incomplete)


def among(*words: str) -> Callable[[str], list[str]]:
    """Completion of words that are known without asking."""

    def offer(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return offer
