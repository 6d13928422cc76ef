"""The thread that renews one attempt's lease, whatever the rest of the supervisor is busy with."""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
from collections.abc import Callable
from types import TracebackType

from store.db.database import Database
from store.db.errors import StaleAttempt
from store.jobs.leases import Claim, Desired, renew
from worker.process.guardian import boot_time

logger = logging.getLogger(__name__)


def safety_margin(lease_seconds: float, heartbeat_seconds: float) -> float:
    """Seconds before the end of the lease by which the trainer must be dead, so that two never run at once."""
    return min(heartbeat_seconds, lease_seconds / 4)


class LeaseKeeper:
    """Renews a claim every `heartbeat_seconds` while used as a context manager.

    :attr:`deadline`, in seconds of :func:`worker.process.guardian.boot_time`, is when the trainer must be dead unless a
    renewal succeeds before. It is reckoned from before each renewal was sent, so it always lies ahead of the
    expiry that the database knows. Errors of the database are borne until then: a healthy job is not ended because
    the database was away for a moment.
    """

    def __init__(
        self,
        database: Database,
        claim: Claim,
        *,
        lease_seconds: float,
        heartbeat_seconds: float,
        claimed_at: float,
        changed: threading.Event,
    ) -> None:
        """`claimed_at`: boot time from before the claim was sent. `changed` is set whenever there is news."""
        self._database = database
        self._claim = claim
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._margin = safety_margin(lease_seconds, heartbeat_seconds)
        self._changed = changed
        self._stopped = threading.Event()
        self._asked = threading.Event()
        # In the caller's context, so that its lines name the job too.
        run = functools.partial(contextvars.copy_context().run, self._run)
        self._thread = threading.Thread(target=run, name="lease", daemon=True)
        self._extended: Callable[[float], None] | None = None
        self._lapsed = False
        self.deadline = claimed_at + lease_seconds - self._margin
        self.desired: Desired | None = None
        """What the newest renewal learned; None before the first."""
        self.desired_at = boot_time()
        """Boot time at which :attr:`desired` was learned."""
        self.stale = False
        """Whether the fence has moved on: nothing more may be written."""

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        # A renewal may hang on a database that is away; the thread is a daemon and holds nothing else.
        self._thread.join(self._heartbeat_seconds)

    @property
    def overdue(self) -> bool:
        """Whether a deadline has passed without a renewal, even if one came later: the guardian killed the trainer."""
        return self._lapsed or boot_time() >= self.deadline

    def wait_for_first_answer(self) -> None:
        """Wait until one renewal has succeeded or failed, at most until the deadline: what the user asked for between
        the claim and now is then known, unless the database is away."""
        self._asked.wait(max(0.0, self.deadline - boot_time()))

    def follow(self, extended: Callable[[float], None] | None) -> None:
        """Call `extended` with each new deadline, in the keeper's thread; with the present one at once."""
        self._extended = extended
        if extended is not None:
            self._lapsed = False
            extended(-1.0 if self.stale else self.deadline)

    def _run(self) -> None:
        while not self._stopped.is_set():
            sent = boot_time()
            try:
                with self._database.write() as session:
                    desired = renew(session, self._claim, self._lease_seconds)
            except StaleAttempt:
                self.stale = True
                # A deadline in the past: the trainer dies now, even if the main thread is stuck.
                self._announce(-1.0)
                self._asked.set()
                return
            except Exception as error:
                # Whatever it is, such as a word of a newer version: the next one may succeed, and none ends the job.
                logger.warning("the lease of %s was not renewed: %s", self._claim.job_id, type(error).__name__)
            else:
                news = self.desired is None or (desired.state, desired.keep, desired.drain) != (
                    self.desired.state,
                    self.desired.keep,
                    self.desired.drain,
                )
                self._lapsed = self._lapsed or boot_time() >= self.deadline
                self.desired, self.desired_at = desired, sent
                self.deadline = sent + self._lease_seconds - self._margin
                self._announce(self.deadline, news=news)
            self._asked.set()
            self._stopped.wait(self._heartbeat_seconds)

    def _announce(self, deadline: float, *, news: bool = True) -> None:
        extended = self._extended
        if extended is not None:
            extended(deadline)
        if news:
            self._changed.set()
