"""One attempt of one job, from its claim to its outcome.

The supervisor owns the run folder and the trainer's processes. It tails the trainer's events into the store in
batches, obeys what the user wants, watches for silence, full disks and the time limit, and reports how it ended.
The lease is renewed by another thread (:mod:`worker.attempt.lease`), so slow work here never costs the job; and once
the fence has moved on, the trainer is killed and nothing more is written.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from minillm_core.spec import (
    ExitCode,
    Failure,
    FailureCategory,
    FailureEvent,
    StudentEvent,
    TrainerEvent,
)
from minillm_core.spec.model_folder import inspect_model
from store.bytes.runs import STREAMS, RunFolder
from store.db.database import DATABASE_AWAY, Database
from store.db.errors import StaleAttempt, UnverifiedArtifact
from store.jobs.endings import Outcome, RetryPolicy, Student
from store.jobs.leases import Claim, finish, pass_over, record, record_process
from store.jobs.vocabulary import DesiredState, JobState, Keep
from store.server_paths import ServerPaths
from store.settings import Settings
from worker.attempt.ending import Ending, StopReason, judge, out_of_memory_kills
from worker.attempt.lease import LeaseKeeper
from worker.attempt.manifests import ManifestError, Unreadable, committed_student, verify
from worker.attempt.run_folder import PreparedRun, Unresolvable, prepare, remove_leftovers, write_pins
from worker.attempt.tail import EventTail, attempt_log
from worker.attempt.watchdog import Watchdog
from worker.launcher import TrainerLauncher
from worker.process.group import ProcessGroup
from worker.process.guardian import boot_time
from worker.process.identity import ProcessIdentity
from worker.process.rotate import rotate

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.1
RECORD_SECONDS = 0.5
"""Time between batches of events, so that a fast trainer does not make a transaction of each step."""
RETRY_SECONDS = 1.0
"""Wait after an error of the database."""
HOUSEKEEPING_SECONDS = 1.0
LOG_LIMIT_BYTES = 32 << 20
STALL_GRACE_SECONDS = 5.0
"""A trainer that hangs rarely answers a SIGTERM."""

Result = TypeVar("Result")


class Wish(Protocol):
    """Something that is wanted or not, such as a :class:`threading.Event`."""

    def is_set(self) -> bool: ...


class Supervisor:
    """Runs the attempt of one claim; used once, by one thread."""

    def __init__(
        self,
        *,
        database: Database,
        settings: Settings,
        launcher: TrainerLauncher,
        claim: Claim,
        claimed_at: float,
        drain: Wish,
        model_folder: Callable[[str], Path | None],
    ) -> None:
        """`claimed_at`: boot time from before the claim was sent; `drain`: set when the worker shall hand back its
        job; `model_folder`: folder of a model, or None."""
        self._database = database
        self._settings = settings
        self._launcher = launcher
        self._claim = claim
        self._claimed_at = claimed_at
        self._drain = drain
        self._model_folder = model_folder
        self._changed = threading.Event()
        self._lease = LeaseKeeper(
            database,
            claim,
            lease_seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
            claimed_at=claimed_at,
            changed=self._changed,
        )
        self._run_dir = settings.runs.attempt(claim.job_id, claim.attempt).path
        self._paths = ServerPaths(settings)
        self._tail = EventTail(RunFolder(self._run_dir).events, self._paths)
        self._watchdog = Watchdog(  # of the trainer: what comes before it may take as long as it likes
            start_seconds=settings.start_watchdog_seconds, progress_seconds=settings.progress_watchdog_seconds
        )
        self._pending: deque[TrainerEvent] = deque()
        self._record_at = 0.0
        self._housekeeping_at = 0.0
        self._launched = False
        self._stop: StopReason | None = None
        self._kill_at = float("inf")
        self._disk_full = False
        self._pinned: frozenset[str] = frozenset()
        self._said: Failure | None = None
        self._student: StudentEvent | None = None
        self._seq = 0
        self.survivors: list[ProcessIdentity] = []
        """Processes that SIGKILL did not end: the slot is dirty while they live."""
        self.missing: Path | None = None
        """What the service has and this machine lacks: the slot is dirty until it is there, or for a while."""

    def run(self) -> JobState | None:
        """Run the attempt to its end; the job's state then, or None where the job was lost to another holder."""
        job = self._claim.job_id
        logger.info("%s: attempt %d begins", job, self._claim.attempt)
        with self._lease:
            try:
                return self._finish(self._attempt())
            except StaleAttempt:
                logger.warning("%s: attempt %d is no longer the holder and was ended", job, self._claim.attempt)
                return None

    # ------------------------------------------------------------------------------------ the attempt

    def _attempt(self) -> Outcome:
        oom_kills = out_of_memory_kills()
        try:
            prepared = prepare(
                self._claim,
                self._settings,
                model_folder=lambda reference: self._persist(lambda: self._model_folder(reference)),
                keep_going=self._keep_going,
            )
        except Unresolvable as error:
            self.missing = error.missing
            return Outcome.failed(error.failure)
        except ValueError as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            message = f"This version of the worker cannot read the job's spec: {reason}"
            return Outcome.failed(Failure(code="job_unreadable", category=FailureCategory.SYSTEM, message=message))
        except OSError as error:
            code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "run_folder"
            return _infrastructure(code, f"The run folder cannot be written: {error.strerror}")
        self._check_fence()
        self._report_damage(prepared)
        self._lease.wait_for_first_answer()
        if not self._keep_going():
            return judge(Ending(status=None, reason=self._stop))
        try:
            group = self._launcher.launch(
                prepared.run_dir,
                ranks=prepared.spec.resources.ranks,
                attempt_id=self._claim.attempt_id,
                deadline=self._lease.deadline,
            )
        except OSError as error:
            return _infrastructure("launch_failed", f"The trainer cannot be started: {error.strerror}")
        try:
            self._lease.follow(group.extend)
            self._launched = True
            self._watchdog.restart()
            self._note_process(group)
            status = self._supervise(group)
        finally:
            self._lease.follow(None)
            self.survivors = group.kill()
            if self.survivors:
                logger.error("%s: processes that cannot be ended: %s", self._claim.job_id, self.survivors)
            remove_leftovers(self._run_dir)
        overdue = self._lease.overdue
        self._drain_events()
        if self._student is None and self._said is None:
            self._find_student()
        student, damage = self._verified_student()
        return judge(
            Ending(
                status=status,
                reason=self._stop,
                said=self._said,
                student=student,
                damage=damage,
                lease_overdue=overdue,
                out_of_memory=out_of_memory_kills() > oom_kills,
                disk_full=self._disk_full or self._almost_full(),
                silent_seconds=self._watchdog.silent_seconds,
                log=attempt_log(self._run_dir, self._paths).encode(),
            )
        )

    def _keep_going(self) -> bool:
        """Whether to go on with what comes before the trainer. A no stands: what was left out by it stays left out."""
        if self._stop is None:
            self._stop = self._reason()
        return self._stop is None and not self._lease.stale

    def _supervise(self, group: ProcessGroup) -> int:
        """Follow the trainer until it has ended. Raises StaleAttempt."""
        while True:
            self._changed.wait(TICK_SECONDS)
            self._changed.clear()
            self._check_fence()
            status = group.poll()
            self._read_events()
            self._record_if_due()
            if status is not None:
                if self._stop is None and status == ExitCode.STOPPED:
                    # A signal that went to all processes of the service may have been quicker to the trainer.
                    self._stop = self._reason()
                return status
            self._steer(group)
            if time.monotonic() >= self._housekeeping_at:
                self._keep_house()

    def _steer(self, group: ProcessGroup) -> None:
        """Stop the trainer where there is a reason: SIGTERM, and SIGKILL once the grace is over."""
        reason = self._reason()
        if reason is not None and (self._stop is None or reason > self._stop):
            logger.info("%s: stopping the trainer (%s)", self._claim.job_id, reason.name.lower())
            group.request_stop()
            self._stop = reason
            self._kill_at = min(self._kill_at, time.monotonic() + self._grace(reason))
        if time.monotonic() >= self._kill_at:
            self.survivors = group.kill()

    def _reason(self) -> StopReason | None:
        desired = self._lease.desired
        left = self._claim.seconds_to_deadline if desired is None else desired.seconds_to_deadline
        learned_at = self._claimed_at if desired is None else self._lease.desired_at
        if desired is not None and desired.state is DesiredState.CANCEL:
            return StopReason.CANCEL
        if left is not None and boot_time() - learned_at >= left:
            return StopReason.TIME_LIMIT
        if self._launched and self._watchdog.stalled:
            return StopReason.STALLED
        if self._disk_full:
            return StopReason.DISK_FULL
        if desired is not None and desired.state is DesiredState.PAUSE:
            return StopReason.PAUSE
        if self._drain.is_set() or (desired is not None and desired.drain):
            return StopReason.DRAIN
        return None

    def _grace(self, reason: StopReason) -> float:
        desired = self._lease.desired
        if reason is StopReason.CANCEL and desired is not None and desired.keep is Keep.NONE:
            return 0.0
        if reason is StopReason.STALLED:
            return min(STALL_GRACE_SECONDS, self._settings.stop_grace_seconds)
        return self._settings.stop_grace_seconds

    def _keep_house(self) -> None:
        self._housekeeping_at = time.monotonic() + HOUSEKEEPING_SECONDS
        self._disk_full = self._almost_full()
        for name in STREAMS:
            try:
                rotate(RunFolder(self._run_dir).log(name), LOG_LIMIT_BYTES)
            except OSError as error:  # no room, mostly: no reason to end a trainer that may yet save
                logger.warning("%s: the log of %s was not rotated: %s", self._claim.job_id, name, error.strerror)
        self._pass_on_pins()

    def _pass_on_pins(self) -> None:
        """Write what the last renewal learned of pins, where that is new."""
        desired = self._lease.desired
        if desired is None or desired.pinned == self._pinned:
            return
        try:
            write_pins(self._run_dir, desired.pinned)
            self._pinned = desired.pinned
        except OSError as error:
            logger.warning("%s: pins were not passed on: %s", self._claim.job_id, error.strerror)

    def _almost_full(self) -> bool:
        try:
            return shutil.disk_usage(self._run_dir).free < self._settings.min_free_bytes
        except OSError as error:
            logger.warning("%s: the disk cannot be asked for its space: %s", self._claim.job_id, error.strerror)
            return False

    # --------------------------------------------------------------------------------------- the store

    def _check_fence(self) -> None:
        if self._lease.stale:
            raise StaleAttempt(self._claim.job_id, self._claim.attempt, self._claim.fence)

    def _note_process(self, group: ProcessGroup) -> None:
        try:
            with self._database.write() as session:
                record_process(session, self._claim, group.identity.pid, group.identity.started)
        except DATABASE_AWAY as error:
            # Nothing depends on the number: the attempt's processes are known by their environment too.
            logger.warning("%s: the trainer's pid was not recorded: %s", self._claim.job_id, type(error).__name__)

    def _report_damage(self, prepared: PreparedRun) -> None:
        for point, error in prepared.damaged:
            try:
                with self._database.write() as session:
                    pass_over(session, self._claim, point, str(error), lasting=not isinstance(error, Unreadable))
            except DATABASE_AWAY:
                return

    def _read_events(self) -> bool:
        """Take what is new in the file, unless the store is behind; whether there was anything."""
        if len(self._pending) > 5000:
            return False
        events = self._tail.read()
        for event in events:
            self._watchdog.observe(event)
            self._seq = event.seq
            if isinstance(event, FailureEvent):
                self._said = event.failure
            elif isinstance(event, StudentEvent):
                self._student = event
        self._pending.extend(events)
        return bool(events)

    def _record_if_due(self) -> None:
        if not self._pending or time.monotonic() < self._record_at:
            return
        try:
            self._record()
            self._record_at = time.monotonic() + RECORD_SECONDS
        except DATABASE_AWAY as error:
            logger.warning("%s: events wait for the database: %s", self._claim.job_id, type(error).__name__)
            self._record_at = time.monotonic() + RETRY_SECONDS
            self._watchdog.restart()

    def _record(self) -> None:
        """Write everything pending. Raises StaleAttempt, and an error of `DATABASE_AWAY` with the rest kept."""
        while self._pending:
            batch = [self._pending[index] for index in range(min(len(self._pending), 500))]
            try:
                with self._database.write() as session:
                    record(session, self._claim, batch)
            except DATABASE_AWAY:
                raise
            except SQLAlchemyError:
                self._record_singly(batch)
            for _ in batch:
                self._pending.popleft()

    def _record_singly(self, batch: list[TrainerEvent]) -> None:
        """Write a batch that the database refused without the events that it refuses alone."""
        for event in batch:
            try:
                with self._database.write() as session:
                    record(session, self._claim, [event])
            except DATABASE_AWAY:
                raise
            except SQLAlchemyError as error:
                logger.error("%s: event %d is left out: %s", self._claim.job_id, event.seq, error)

    def _drain_events(self) -> None:
        """Bring what the ended trainer wrote into the store, however long the database is away."""
        while self._read_events() or self._pending:
            self._persist(self._record)

    def _finish(self, outcome: Outcome) -> JobState:
        policy = RetryPolicy.of(self._settings)

        def settle(outcome: Outcome) -> JobState:
            with self._database.write() as session:
                state = finish(session, self._claim, outcome, policy)
            logger.info("%s: attempt %d ended, the job is %s", self._claim.job_id, self._claim.attempt, state)
            return state

        try:
            return self._persist(lambda: settle(outcome))
        except UnverifiedArtifact as error:
            logger.error("%s", error)
            failure = Failure(code="internal_error", category=FailureCategory.SYSTEM, message=str(error))
            log = attempt_log(self._run_dir, self._paths).encode()
            return self._persist(lambda: settle(Outcome.failed(failure, log=log)))

    def _persist(self, write: Callable[[], Result]) -> Result:
        """Do what must not be lost, again and again while the database is away; what it returns.

        A worker that drains gives up after its grace: the lease then expires and a sweep requeues the job.
        Raises StaleAttempt where the job was lost meanwhile.
        """
        give_up: float | None = None
        while True:
            self._check_fence()
            try:
                return write()
            except DATABASE_AWAY as error:
                logger.warning("%s: waiting for the database: %s", self._claim.job_id, type(error).__name__)
                if self._drain.is_set():
                    give_up = give_up or time.monotonic() + self._settings.stop_grace_seconds
                    if time.monotonic() > give_up:
                        raise StaleAttempt(self._claim.job_id, self._claim.attempt, self._claim.fence) from error
                time.sleep(RETRY_SECONDS)

    def _find_student(self) -> None:
        """Announce the student that a trainer committed and could not announce: no line costs a student."""
        self._student = committed_student(self._run_dir, seq=self._seq + 1)
        if self._student is not None:
            logger.warning("%s: the student was committed and not announced", self._claim.job_id)
            self._pending.append(self._student)
            self._persist(self._record)

    def _verified_student(self) -> tuple[Student | None, str | None]:
        """The exported student if every file is as its manifest says, and otherwise why not."""
        if self._student is None:
            return None, None
        folder = self._run_dir / self._student.path
        if not folder.resolve().is_relative_to(self._run_dir.resolve()):
            return None, "its folder lies outside of the run folder"
        try:
            verify(folder, kind="student", manifest_sha256=self._student.manifest_sha256)
            manifest = RunFolder(self._run_dir).manifest(self._student.path).read_bytes()
        except (ManifestError, OSError) as error:
            return None, str(error)
        found = inspect_model(folder, folder)
        if found.description.parameters == 0:
            return None, found.told
        return Student(manifest, found.description), None


def _infrastructure(code: str, message: str) -> Outcome:
    failure = Failure(code=code, category=FailureCategory.INFRASTRUCTURE, message=message, retryable=True)
    return Outcome.failed(failure)
