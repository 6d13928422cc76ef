"""What must be true once the dust has settled: every invariant of the store, of the folders and of the students."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks.chaos.tinyjobs import weights_sha256
from benchmarks.chaos.users import Accepted
from minillm import Client
from store.bytes.runs import Runs
from store.db.tables import Attempt, Checkpoint, Event, Job, Model
from store.jobs.artifacts import ArtifactRepository
from store.jobs.transitions import TRANSITIONS
from store.jobs.vocabulary import TERMINAL, ArtifactKind, AttemptState, Cause, JobState
from worker.attempt.manifests import ManifestError, verify


@dataclass
class Findings:
    """Each list holds one line a fault found; all of them shall be empty."""

    lost: list[str] = field(default_factory=list)
    double_runs: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    wrong_states: list[str] = field(default_factory=list)
    weights_differ: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {name: len(lines) for name, lines in vars(self).items()}

    def say(self) -> None:
        for name, lines in vars(self).items():
            for line in lines:
                print(f"{name}: {line}", file=sys.stderr)


@dataclass
class Tally:
    """What the jobs went through."""

    states: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    resumed: int = 0
    """Attempts that went on from a checkpoint."""
    failures: Counter[str] = field(default_factory=Counter)
    """Codes of the attempts' failures."""


def check_students(client: Client, accepted: Mapping[str, Accepted], right: Mapping[str, str], to: Path,
                   findings: Findings) -> None:  # fmt: skip
    """Download the student of each job that succeeded and compare its weights with the undisturbed run's."""
    for job in accepted.values():
        if job.deleted or client.job(job.id).state != "succeeded":
            continue
        digest = weights_sha256(client.download(job.id, to / job.id))
        if digest != right[job.kind]:
            findings.weights_differ.append(f"{job.id} ({job.kind}): {digest[:12]} instead of {right[job.kind][:12]}")


def check_rows(session: Session, accepted: Mapping[str, Accepted], data_dir: Path, corrupted: set[Path],
               findings: Findings) -> Tally:  # fmt: skip
    """Every invariant that the database and the data folder can be asked for."""
    tally = Tally()
    rows = {job.id: job for job in session.scalars(select(Job))}
    for stranger in rows.keys() - accepted.keys():
        findings.wrong_states.append(f"{stranger} exists and was never accepted")
    for wanted in accepted.values():
        job = rows.get(wanted.id)
        if wanted.deleted:
            if job is not None or Runs(data_dir).job(wanted.id).exists():
                findings.wrong_states.append(f"{wanted.id} was deleted and is still there")
            continue
        if job is None:
            findings.lost.append(f"{wanted.id} was accepted and is gone")
            continue
        tally.states[str(job.state)] += 1
        if job.state not in TERMINAL:
            findings.lost.append(f"{job.id} is still {job.state}")
            continue
        faults = [
            *_end(job, wanted, _damaged_origin(wanted, data_dir, corrupted)),
            *_events(session, job),
            *_attempts(session, job, data_dir, tally, findings),
            *_student(session, job, data_dir),
            *_checkpoints(session, job, wanted, data_dir, corrupted),
        ]
        findings.wrong_states.extend(f"{job.id}: {fault}" for fault in faults)
    return tally


def _damaged_origin(wanted: Accepted, data_dir: Path, corrupted: set[Path]) -> bool:
    """Whether a checkpoint of the job that it was forked from was damaged on purpose."""
    return wanted.origin is not None and any(Runs(data_dir).job(wanted.origin) in path.parents for path in corrupted)


def _end(job: Job, wanted: Accepted, damaged_origin: bool) -> list[str]:
    faults = []
    # A fork never begins afresh: without its checkpoint it says so.
    right = {"failed"} if damaged_origin and (job.failure or {}).get("code") == "checkpoint_unreadable" else set()
    if str(job.state) not in wanted.ends | right:
        reason = (job.failure or {}).get("message")
        faults.append(f"{job.state} instead of {' or '.join(sorted(wanted.ends))} ({reason})")
    if job.lease_owner is not None or job.lease_expires_at is not None or job.finished_at is None:
        faults.append("terminal with a lease or without an end")
    return faults


def _events(session: Session, job: Job) -> list[str]:
    events = session.scalars(select(Event).where(Event.job_id == job.id).order_by(Event.seq)).all()
    faults = []
    if [event.seq for event in events] != list(range(1, job.event_seq + 1)):
        faults.append("the sequence of its events has gaps")
    state: str | None = None
    for event in events:
        if event.type != "state":
            continue
        edge = event.data
        was, to, cause = edge["from"], edge["to"], Cause(edge["cause"])
        if was != state:
            faults.append(f"event {event.seq} leaves {was}, and the state was {state}")
        if JobState(to) not in TRANSITIONS.get((None if was is None else JobState(was), cause), frozenset()):
            faults.append(f"event {event.seq}: {was} to {to} by {cause} is no transition")
        state = to
    if state != str(job.state):
        faults.append(f"the state is {job.state} and its last event says {state}")
    return faults


def _attempts(session: Session, job: Job, data_dir: Path, tally: Tally, findings: Findings) -> list[str]:
    rows = session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.number)).all()
    faults = []
    if [row.number for row in rows] != list(range(1, job.attempt + 1)):
        faults.append("its attempts are not numbered 1, 2, ...")
    if any(a.fence >= b.fence for a, b in itertools.pairwise(rows)) or (rows and rows[-1].fence > job.fence):
        faults.append("the fence did not rise with each attempt")
    for row in rows:
        tally.attempts += 1
        tally.resumed += row.resumed_from is not None
        if row.failure is not None:
            tally.failures[str(row.failure.get("code"))] += 1
        if row.state is AttemptState.ACTIVE or row.ended_at is None:
            faults.append(f"attempt {row.number} never ended")
    for a, b in itertools.pairwise(rows):
        if a.ended_at is not None and b.started_at < a.ended_at:
            findings.double_runs.append(f"{job.id}: attempt {b.number} began before {a.number} had ended")
    wrote = [(row.number, _times(Runs(data_dir).attempt(job.id, row.number).events)) for row in rows]
    spoke = [(number, times) for number, times in wrote if times]
    for (a_number, a_times), (b_number, b_times) in itertools.pairwise(spoke):
        if b_times[0] < a_times[-1]:
            findings.double_runs.append(f"{job.id}: the trainers of attempts {a_number} and {b_number} overlap")
    return faults


def _times(path: Path) -> list[str]:
    """Times of the events that a trainer wrote; a line that was cut short has none."""
    times = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                times.append(str(json.loads(line)["time"]))
            except (ValueError, KeyError, TypeError):
                continue
    return times


def _student(session: Session, job: Job, data_dir: Path) -> list[str]:
    student = ArtifactRepository(session).verified(job, ArtifactKind.STUDENT)
    if job.state is not JobState.SUCCEEDED:
        return [f"{job.state} with a student"] if student is not None else []
    if student is None or student.model_id is None or session.get(Model, student.model_id) is None:
        return ["succeeded without a student"]
    try:
        folder = Runs(data_dir).attempt(job.id, student.attempt).inside(student.path)
        verify(folder, kind="student", manifest_sha256=student.manifest_sha256)
    except ManifestError as error:
        return [f"its student does not verify: {error}"]
    succeeded = session.scalars(
        select(Attempt.number).where(Attempt.job_id == job.id, Attempt.state == AttemptState.SUCCEEDED)
    ).all()
    return [] if succeeded == [job.attempt] else [f"the attempts {succeeded} succeeded, and {job.attempt} was the last"]


def _checkpoints(session: Session, job: Job, wanted: Accepted, data_dir: Path, corrupted: set[Path]) -> list[str]:
    rows = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.deleting.is_(False))).all()
    faults = []
    if job.state is JobState.CANCELLED and len(rows) > (0 if wanted.keep == "none" else 1):
        faults.append(f"cancelled with keep={wanted.keep} and {len(rows)} checkpoints")
    for row in rows:
        folder = Runs(data_dir).attempt(job.id, row.attempt).inside(row.path)
        if folder in corrupted:
            continue
        try:
            verify(folder, kind="checkpoint", manifest_sha256=row.manifest_sha256)
        except ManifestError as error:
            faults.append(f"a recorded checkpoint does not verify: {error}")
    return faults
