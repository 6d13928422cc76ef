"""The thread that renews a lease."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from store.db.tables import Job
from store.jobs.leases import Claim, claim
from store.jobs.vocabulary import DesiredState
from tests.fixtures.play import Service
from tests.fixtures.process import wait_until
from worker.attempt import lease as lease_keeper
from worker.attempt.lease import LeaseKeeper, safety_margin
from worker.process.guardian import boot_time


def _keeper(service: Service, lease_seconds: float = 1.0) -> tuple[Claim, LeaseKeeper, threading.Event]:
    service.submit()
    changed = threading.Event()
    claimed_at = boot_time()
    with service.database.write() as session:
        claimed = claim(session, "wrk_tests", "tests", 1, lease_seconds)
    assert claimed is not None
    keeper = LeaseKeeper(
        service.database,
        claimed,
        lease_seconds=lease_seconds,
        heartbeat_seconds=0.05,
        claimed_at=claimed_at,
        changed=changed,
    )
    return claimed, keeper, changed


def test_renews_and_tells_the_new_deadline(service: Service) -> None:
    claimed, keeper, _ = _keeper(service)
    told: list[float] = []
    first = keeper.deadline
    with keeper:
        keeper.follow(told.append)
        wait_until(lambda: len(told) > 3)
    assert told == sorted(told) and told[-1] > first
    assert not keeper.overdue
    with service.database.read() as session:
        job = session.get_one(Job, claimed.job_id)
        now = service.database.now(session)
        assert job.lease_expires_at is not None
        # The trainer must be dead before the database would give the job to another.
        assert keeper.deadline - boot_time() <= (job.lease_expires_at - now).total_seconds()


def test_the_deadline_is_reckoned_from_before_a_renewal_was_sent(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long its answer takes: the lease began when the database wrote it."""
    sent: list[float] = []
    renew = lease_keeper.renew

    def slow(*arguments: Any) -> Any:
        sent.append(boot_time())
        desired = renew(*arguments)
        threading.Event().wait(0.3)
        return desired

    monkeypatch.setattr(lease_keeper, "renew", slow)
    _, keeper, _ = _keeper(service, 5.0)
    told: list[float] = []
    with keeper:
        keeper.follow(told.append)
        wait_until(lambda: len(told) > 2)
    for before, deadline in zip(sent, told[1:], strict=False):
        assert deadline <= before + 5.0 - safety_margin(5.0, 0.05)


def test_what_the_user_wants_is_news(service: Service) -> None:
    claimed, keeper, changed = _keeper(service)
    with keeper:
        wait_until(lambda: keeper.desired is not None)
        changed.clear()
        service.do(claimed.job_id, "request_cancel")
        assert changed.wait(5.0)
        assert keeper.desired is not None and keeper.desired.state is DesiredState.CANCEL


def test_a_passed_fence_puts_the_deadline_in_the_past(service: Service) -> None:
    claimed, keeper, changed = _keeper(service)
    told: list[float] = []
    with keeper:
        keeper.follow(told.append)
        with service.database.write() as session:
            session.get_one(Job, claimed.job_id).fence += 1
        wait_until(lambda: keeper.stale)
        wait_until(lambda: told[-1] < 0)
        assert changed.is_set()


def test_an_outage_shorter_than_the_lease_is_borne(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    _, keeper, _ = _keeper(service, 5.0)
    refused = threading.Event()

    def away() -> Any:
        refused.set()
        raise OperationalError("", {}, Exception("away"))

    with keeper:
        wait_until(lambda: keeper.desired is not None)
        with monkeypatch.context() as outage:
            outage.setattr(service.database, "write", away)
            assert refused.wait(5.0)
            before = keeper.deadline
            assert not keeper.stale
        wait_until(lambda: keeper.deadline > before)


def test_an_outage_longer_than_the_lease_is_overdue(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    _, keeper, _ = _keeper(service, 0.3)

    def away() -> Any:
        raise OperationalError("", {}, Exception("away"))

    with keeper:
        with monkeypatch.context() as outage:
            outage.setattr(service.database, "write", away)
            wait_until(lambda: keeper.overdue)
            before = keeper.deadline
        # Renewed after all; the guardian had killed the trainer before.
        wait_until(lambda: keeper.deadline > before)
        assert keeper.overdue and not keeper.stale
        keeper.follow(lambda _: None)
        assert not keeper._lapsed, "the next trainer was not there then"


def test_one_renewal_that_goes_wrong_in_another_way_is_not_the_last(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, keeper, _ = _keeper(service, 5.0)
    tried = threading.Event()

    def broken() -> Any:
        tried.set()
        raise ValueError("'hibernate' is not a valid DesiredState")

    with keeper:
        with monkeypatch.context() as newer:
            newer.setattr(service.database, "write", broken)
            assert tried.wait(5.0)
            before = keeper.deadline
        wait_until(lambda: keeper.deadline > before)


def test_the_margin_is_within_the_lease() -> None:
    assert safety_margin(30.0, 5.0) == 5.0
    assert safety_margin(1.0, 0.5) == 0.25
