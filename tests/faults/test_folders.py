"""Folders that are cut short: half-written checkpoints, deletions that a crash interrupts, disks that fill (26, 28)."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from minillm_core.manifests import commit_folder, verify_folder
from minillm_core.spec import EVENTS_FILE
from store.db.tables import Checkpoint, Job
from store.jobs.repository import JobRepository
from store.jobs.vocabulary import JobState, Keep
from tests.faults.conftest import sweeper_of
from tests.fixtures.play import Service
from tests.fixtures.process import die, in_child, wait_until
from worker.attempt import lease as lease_keeper
from worker.process.rotate import rotate


class TestCommit:
    def test_death_at_every_step_leaves_a_whole_folder_or_none(self, tmp_path: Path) -> None:
        """The names are the ones that the operating system is called by: nothing in between can be interrupted."""
        for earlier in (False, True):
            for number in range(1, 100):
                home = tmp_path / f"{earlier}-{number}"
                final = home / "00002-training-0000002"
                if earlier:
                    commit_folder(_filled(home / ".earlier", b"old"), final, "checkpoint", {"step": 1})

                def commit(home: Path = home, final: Path = final, number: int = number) -> None:
                    _die_at_call(number, "fsync", "rename", "replace", "rmdir", "unlink")
                    commit_folder(_filled(home / ".aside", b"new"), final, "checkpoint", {"step": 2})

                status = in_child(commit)
                assert status in (0, -signal.SIGKILL)
                shown = [path for path in home.iterdir() if not path.name.startswith(".")] if home.exists() else []
                assert all(verify_folder(path) for path in shown)
                if status == 0:
                    assert shown == [final] and verify_folder(final).data == {"step": 2}
                    break
            else:
                pytest.fail("it never came to its end")
            assert number > 5


def _filled(folder: Path, content: bytes) -> Path:
    (folder / "engine").mkdir(parents=True)
    (folder / "state.json").write_bytes(content)
    (folder / "engine" / "weights.pt").write_bytes(content * 100)
    return folder


def _die_at_call(number: int, *names: str) -> None:
    """Make the ``number``-th call of any of these functions of ``os`` the last moment of this process."""
    seen = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == number:
                die()
            return function(*arguments, **keywords)

        return call

    for name in names:
        setattr(os, name, deadly(getattr(os, name)))


class TestLeftovers:
    """What dead trainers had not finished is nobody's: it would fill the disk of a job that lives for weeks."""

    def test_go_with_the_attempt(self, service: Service) -> None:
        job_id = service.submit(mode="kill", at="3", leave="checkpoints/.00002-training-0000002")
        service.run()
        folder = service.settings.runs.attempt(job_id, 1).path / "checkpoints"
        assert [path.name for path in folder.iterdir()] == ["training-2"]

    def test_of_a_lost_worker_go_with_the_next_attempt(self, service: Service) -> None:
        job_id = service.submit(mode="kill", at="3", scheduling={"max_attempts": 9})
        service.run()
        half = service.settings.runs.attempt(job_id, 1).path / "checkpoints" / ".00002-training-0000002"
        half.mkdir()
        (half / "state.bin").write_bytes(b"half")
        service.run()
        assert not half.exists()
        assert (service.settings.runs.attempt(job_id, 1).path / "checkpoints" / "training-2").is_dir()


class TestDeletion:
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_crash_while_a_job_is_deleted(self, service: Service, when: str) -> None:
        job_id = service.submit(steps="2")
        service.run()
        service.do(job_id, "request_delete")
        folder = service.settings.runs.root / job_id

        def dying_sweep() -> None:
            remove = shutil.rmtree

            def interrupted(path: Path, **options: Any) -> None:
                if when == "after":
                    remove(path, **options)
                else:
                    (path / "1" / "events.jsonl").unlink()  # some of it is gone, most is not
                die()

            shutil.rmtree = interrupted  # type: ignore[assignment]
            sweeper_of(service).sweep_once()

        assert in_child(dying_sweep) == -signal.SIGKILL
        assert folder.exists() is (when == "before")
        assert service.job(job_id).deleting, "the row goes last, so that the rest is found again"
        assert sweeper_of(service).sweep_once() is not None
        assert not folder.exists()
        with service.database.read() as session:
            assert session.get(Job, job_id) is None


class TestCancel:
    @pytest.mark.parametrize("keep", list(Keep))
    def test_what_is_kept_is_on_the_disk_and_the_rest_is_not(self, service: Service, keep: Keep) -> None:
        job_id = service.submit(steps="1000", delay="0.05")
        thread = service.run_aside()
        wait_until(lambda: service.steps(job_id) >= 6, 30)
        with service.database.write() as session:
            best = session.scalars(select(Checkpoint).order_by(Checkpoint.step)).first()
            assert best is not None
            best.best = True
            best_path = best.path
        service.do(job_id, "request_cancel", keep=keep)
        thread.join(30)
        assert service.state(job_id) is JobState.CANCELLED
        with service.database.read() as session:
            newest = session.scalars(select(Checkpoint.path).order_by(Checkpoint.step.desc())).first()
        sweeper = sweeper_of(service)

        def nothing_left() -> bool:
            """A sweep removes as much as its time allows."""
            sweeper.sweep_once()
            with service.database.read() as session:
                return session.scalar(select(Checkpoint.id).where(Checkpoint.deleting.is_(True)).limit(1)) is None

        wait_until(nothing_left)
        wanted = {Keep.BEST: {best_path}, Keep.LAST: {newest}, Keep.NONE: set()}[keep]
        with service.database.read() as session:
            assert set(session.scalars(select(Checkpoint.path))) == wanted
        run_dir = service.settings.runs.attempt(job_id, 1).path
        assert {f"checkpoints/{path.name}" for path in (run_dir / "checkpoints").iterdir()} == wanted


class TestWhileStarting:
    def test_a_pause_needs_no_trainer(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        """However long the first renewal takes, by which the worker learns of it."""
        renew = lease_keeper.renew

        def slow(*arguments: Any) -> Any:
            time.sleep(0.5)
            return renew(*arguments)

        monkeypatch.setattr(lease_keeper, "renew", slow)
        job_id = service.submit(steps="2")
        supervisor = service.supervisor()
        assert service.state(job_id) is JobState.STARTING
        service.do(job_id, "request_pause")
        assert service.state(job_id) is JobState.PAUSING
        supervisor.run()
        assert service.state(job_id) is JobState.PAUSED
        assert not (service.settings.runs.attempt(job_id, 1).path / EVENTS_FILE).exists()
        service.do(job_id, "resume")
        service.run()
        assert service.state(job_id) is JobState.SUCCEEDED

    def test_a_cancel_needs_none_either(self, service: Service) -> None:
        job_id = service.submit(steps="2")
        supervisor = service.supervisor()
        service.do(job_id, "request_cancel")
        supervisor.run()
        assert service.state(job_id) is JobState.CANCELLED
        assert service.processes(job_id) == 0

    def test_the_time_limit_counts_from_the_first_start(self, service: Service) -> None:
        job_id = service.submit(steps="2", scheduling={"max_runtime_seconds": 3600})
        with service.database.write() as session:
            jobs = JobRepository(session)
            job = jobs.get("key_tests", job_id)
            assert job.deadline_at is None
        supervisor = service.supervisor()
        with service.database.write() as session:
            job = session.get_one(Job, job_id)
            job.deadline_at = job.started_at
        supervisor.run()
        assert service.state(job_id) is JobState.EXPIRED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "minillm-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class TestFullDisk:
    def test_a_trainer_that_cannot_even_say_so_is_tried_again(self, service: Service, small_disk: Path) -> None:
        service.settings.runs.root.rmdir()
        service.settings.runs.root.symlink_to(small_disk)
        job_id = service.submit(steps="1000", delay="0.05", mode="ballast", at="5")
        service.run(min_free_bytes=64 << 10)
        job = service.job(job_id)
        assert job.failure is not None
        assert (job.state, job.failure["code"]) == (JobState.QUEUED, "disk_full")
        with service.database.read() as session:
            for row in session.scalars(select(Checkpoint)):
                assert verify_folder(service.settings.runs.attempt(job_id, 1).path / row.path)

    def test_a_log_that_there_is_no_room_to_rotate_stays(self, small_disk: Path) -> None:
        log = small_disk / "stdout.log"
        log.write_bytes(b"x" * (6 << 20))
        with pytest.raises(OSError, match="No space left"):
            rotate(log, 5 << 20)
        assert log.stat().st_size == 6 << 20
        assert list(small_disk.iterdir()) == [log]

    def test_housekeeping_that_fails_ends_no_trainer(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        tried = []

        def full(log: Path, limit_bytes: int) -> bool:
            tried.append(log)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("worker.attempt.supervisor.rotate", full)
        job_id = service.submit(steps="4", delay="0.4")
        service.run()
        assert tried and service.state(job_id) is JobState.SUCCEEDED
        assert len(service.attempts(job_id)) == 1

    def test_a_run_folder_that_cannot_be_made(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        job_id = service.submit()
        monkeypatch.setattr("worker.attempt.supervisor.prepare", full)
        service.run()
        failure = service.job(job_id).failure
        assert failure is not None and (failure["code"], failure["retryable"]) == ("disk_full", True)
