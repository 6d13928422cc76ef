"""The table of transitions itself."""

from __future__ import annotations

import pytest

from store.db.database import Database
from store.db.errors import InvalidTransition
from store.jobs.repository import JobRepository
from store.jobs.transitions import TERMINAL, TRANSITIONS, Cause, JobState, allowed, apply, lock
from tests.store import scenes


def test_terminal_states_are_left_by_retry_alone() -> None:
    left = {(state, cause) for state, cause in TRANSITIONS if state in TERMINAL}
    assert left == {(JobState.FAILED, Cause.RETRY), (JobState.EXPIRED, Cause.RETRY)}


def test_every_state_is_reached_and_every_unfinished_one_can_be_cancelled_and_expires() -> None:
    reached = {to for choices in TRANSITIONS.values() for to in choices}
    assert reached == set(JobState)
    for state in set(JobState) - TERMINAL - {JobState.CANCELLING}:
        assert allowed(state, Cause.CANCEL)
    for state in set(JobState) - TERMINAL:
        assert TRANSITIONS[state, Cause.DEADLINE] == {JobState.EXPIRED}


def test_success_only_from_states_that_have_worked() -> None:
    sources = {state for (state, cause), choices in TRANSITIONS.items() if JobState.SUCCEEDED in choices}
    assert sources == {JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING}


def test_a_refused_change_changes_nothing(database: Database) -> None:
    job_id = scenes.make_job(database)
    before = scenes.row(database, job_id)
    with database.write() as session:
        job = lock(session, job_id)
        for cause in (Cause.PAUSE_DONE, Cause.STUDENT_COMMITTED, Cause.RETRY, Cause.CREATE):
            with pytest.raises(InvalidTransition):
                apply(session, job, cause, JobState.PAUSED)
        with pytest.raises(InvalidTransition):
            apply(session, job, Cause.CLAIM, JobState.RUNNING)
    after = scenes.row(database, job_id)
    assert (after.state, after.event_seq, after.version) == (before.state, before.event_seq, before.version)


def test_each_change_raises_version_and_sequence(database: Database) -> None:
    job_id = scenes.make_job(database)
    before = scenes.row(database, job_id)
    with database.write() as session:
        repository = JobRepository(session)
        repository.request_pause(repository.get(scenes.OWNER, job_id))
    after = scenes.row(database, job_id)
    assert after.version > before.version and after.event_seq == before.event_seq + 1
