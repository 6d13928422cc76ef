"""One attempt, from its claim to its outcome, on every database."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from minillm_core.spec import PINNED_FILE
from minillm_core.spec.versions import read_spec
from store.db.tables import Checkpoint, Event, MetricPoint
from store.jobs.checkpoints import CheckpointRepository
from store.jobs.endings import RetryPolicy
from store.jobs.repository import JobRepository
from store.jobs.vocabulary import AttemptState, JobState, Keep
from store.workers import WorkerRepository
from tests.fixtures.play import OWNER, SHORT_LEASE, Service
from tests.fixtures.process import wait_until
from tests.fixtures.sweep import sweep
from tests.store import scenes
from worker.attempt import run_folder
from worker.attempt.ending import StopReason
from worker.attempt.supervisor import Supervisor


class TestSuccess:
    def test_the_job_succeeds_with_all_it_said(self, service: Service) -> None:
        job_id = service.submit(steps="4")
        service.run()
        job = service.job(job_id)
        assert job.state is JobState.SUCCEEDED
        assert (job.step, job.fraction, job.report) == (4, 1.0, {"before": {"rouge_l": 1.0}, "after": {"rouge_l": 2.0}})
        assert scenes.student_model(service.database, job_id)
        (attempt,) = service.attempts(job_id)
        assert (attempt.state, attempt.exit_code, attempt.signal) == (AttemptState.SUCCEEDED, 0, None)
        assert attempt.pid is not None and attempt.pid_started is not None
        with service.database.read() as session:
            assert len(session.scalars(select(MetricPoint)).all()) == 4
            assert {row.step for row in session.scalars(select(Checkpoint))} == {2, 4}
            seqs = list(session.scalars(select(Event.seq).where(Event.job_id == job_id).order_by(Event.seq)))
        assert seqs == list(range(1, len(seqs) + 1))
        assert service.processes(job_id) == 0

    def test_a_student_that_was_committed_is_not_lost_with_its_line(self, service: Service) -> None:
        job_id = service.submit(mode="unannounced")
        service.run()
        job = service.job(job_id)
        assert (job.state, job.teacher_parameters) == (JobState.SUCCEEDED, 256)
        assert job.report == {"before": {"rouge_l": 1.0}, "after": {"rouge_l": 2.0}}
        student = scenes.artifact(service.database, job_id)
        assert student is not None and student.parameters == 128 and student.model_id is not None

    def test_a_damaged_student_is_not_offered(self, service: Service) -> None:
        job_id = service.submit(mode="corrupt", scheduling={"max_attempts": 1})
        service.run()
        job = service.job(job_id)
        assert job.state is JobState.FAILED
        assert job.failure is not None and job.failure["code"] == "student_damaged"
        assert scenes.artifact(service.database, job_id) is None


class TestFailure:
    @pytest.mark.parametrize(
        ("mode", "code", "category", "exit_code"),
        [
            ("user_error", "dataset_invalid", "user", 64),
            ("crash", "internal_error", "system", 70),
            ("no_student", "internal_error", "system", 0),
        ],
    )
    def test_of_the_user_or_ours_is_final(
        self, service: Service, mode: str, code: str, category: str, exit_code: int
    ) -> None:
        job_id = service.submit(mode=mode)
        service.run()
        job = service.job(job_id)
        assert job.state is JobState.FAILED
        assert job.failure is not None and (job.failure["code"], job.failure["category"]) == (code, category)
        assert service.attempts(job_id)[0].exit_code == exit_code

    def test_the_end_of_the_log_is_kept_without_control_characters(self, service: Service) -> None:
        job_id = service.submit(mode="crash")
        service.run()
        log = service.attempts(job_id)[0].log_tail
        assert log is not None and "Traceback: broken on purpose" in log and "\x1b" not in log

    def test_a_killed_trainer_is_tried_again_and_resumes(self, service: Service) -> None:
        job_id = service.submit(mode="kill", at="4", steps="5")
        service.run()
        assert service.state(job_id) is JobState.QUEUED
        attempt = service.attempts(job_id)[0]
        assert attempt.signal == signal.SIGKILL and attempt.failure["code"] == "trainer_killed"
        service.run()
        context = json.loads((service.settings.runs.attempt(job_id, 2).path / "run.json").read_text())
        assert context["resume_from"] == [
            str(service.settings.runs.attempt(job_id, 1).path / "checkpoints" / "training-2")
        ]

    def test_killed_at_the_same_step_again_and_again_is_final(self, service: Service) -> None:
        job_id = service.submit(mode="kill", at="1", scheduling={"max_attempts": 20})
        for _ in range(service.settings.max_stalled_attempts):
            assert service.state(job_id) is JobState.QUEUED
            service.run()
        assert service.state(job_id) is JobState.FAILED

    def test_out_of_memory_twice_at_the_same_step_is_final(self, service: Service) -> None:
        job_id = service.submit(mode="oom", at="2")
        service.run()
        assert service.state(job_id) is JobState.QUEUED
        service.run()
        assert service.state(job_id) is JobState.FAILED

    def test_a_missing_file_names_its_field(self, service: Service) -> None:
        """It cannot be deleted while the job needs it, so that it is this machine that lacks it: tried again."""
        job_id = service.submit()
        (blob,) = service.settings.files_dir.iterdir()
        blob.unlink()
        supervisor = service.supervisor()
        supervisor.run()
        job = service.job(job_id)
        assert job.failure is not None
        assert (job.failure["code"], job.failure["param"]) == ("file_not_found", "/dataset/file")
        assert (job.state, job.failure["category"], supervisor.missing) == (JobState.QUEUED, "infrastructure", blob)

    def test_a_model_that_the_service_has_and_this_machine_has_not(self, service: Service) -> None:
        (service.settings.models_dir / "teacher").rmdir()
        job_id = service.submit()
        service.supervisor(model_folder=lambda reference: service.settings.models_dir / "teacher").run()
        assert _end(service, job_id) == (JobState.QUEUED, "model_not_found")
        service.supervisor(model_folder=lambda reference: None).run()
        assert _end(service, job_id) == (JobState.FAILED, "model_not_found"), "the service has it no more"

    @pytest.mark.parametrize("reference", ["path:linked", "path:../outside"])
    def test_a_link_among_the_models_is_not_followed(self, service: Service, reference: str) -> None:
        outside = service.settings.models_dir.parent / "outside"
        outside.mkdir()
        (service.settings.models_dir / "linked").symlink_to(outside)
        job_id = service.submit(student={"model": reference})
        service.run()
        assert _end(service, job_id) == (JobState.FAILED, "linked_folder")

    def test_a_hung_trainer_is_ended(self, service: Service) -> None:
        job_id = service.submit(mode="hang", at="2", scheduling={"max_attempts": 1})
        service.run(progress_watchdog_seconds=0.5, start_watchdog_seconds=5.0, stop_grace_seconds=0.1)
        failure = service.job(job_id).failure
        assert failure is not None and failure["code"] == "stalled"
        assert service.processes(job_id) == 0

    def test_a_full_disk_stops_the_run_with_its_checkpoint(self, service: Service) -> None:
        job_id = service.submit(steps="1000", delay="0.05")
        thread = service.run_aside(min_free_bytes=1 << 60)
        thread.join(10)
        job = service.job(job_id)
        assert job.failure is not None
        assert (job.state, job.failure["code"]) == (JobState.QUEUED, "disk_full")

    def test_the_time_limit_expires_the_job_with_its_checkpoint(self, service: Service) -> None:
        job_id = service.submit(steps="1000", delay="0.05", scheduling={"max_runtime_seconds": 1})
        service.run()
        assert service.state(job_id) is JobState.EXPIRED
        assert service.attempts(job_id)[0].exit_code == 75
        with service.database.read() as session:
            assert session.scalars(select(Checkpoint)).all()


class TestResume:
    def test_a_damaged_checkpoint_is_passed_over_and_said(self, service: Service) -> None:
        job_id = service.submit(mode="kill", at="5", steps="5", scheduling={"max_attempts": 2})
        service.run()
        newest = service.settings.runs.attempt(job_id, 1).path / "checkpoints" / "training-4" / "state.bin"
        newest.write_bytes(b"x" * newest.stat().st_size)
        service.run()
        context = json.loads((service.settings.runs.attempt(job_id, 2).path / "run.json").read_text())
        assert [Path(folder).name for folder in context["resume_from"]] == ["training-2"]
        with service.database.read() as session:
            codes = session.scalars(select(Event.code).where(Event.job_id == job_id)).all()
            rows = session.scalars(select(Checkpoint).where(Checkpoint.attempt == 1)).all()
        assert "checkpoint_damaged" in codes
        assert {row.step: row.resumable for row in rows} == {2: True, 4: False}, "nobody tries the damaged one again"

    def test_one_that_cannot_be_read_now_may_be_whole_elsewhere(self, service: Service) -> None:
        job_id = service.submit(mode="kill", at="5", steps="5", scheduling={"max_attempts": 2})
        service.run()
        newest = service.settings.runs.attempt(job_id, 1).path / "checkpoints" / "training-4"
        newest.rename(newest.with_name("away"))
        service.run()
        with service.database.read() as session:
            assert set(session.scalars(select(Checkpoint.resumable))) == {True}

    def test_what_cannot_be_read_here_is_not_thrown_away(self, service: Service) -> None:
        """A disk that is not mounted: from the beginning, the job would soon push out what lies on it."""
        job_id = service.submit(mode="kill", at="5", steps="5", scheduling={"max_attempts": 3})
        service.run()
        run_dir = service.settings.runs.attempt(job_id, 1).path
        run_dir.rename(run_dir.with_name("away"))
        supervisor = service.supervisor()
        supervisor.run()
        assert _end(service, job_id) == (JobState.QUEUED, "checkpoint_unreadable")
        assert service.attempts(job_id)[1].pid is None
        assert supervisor.missing == run_dir / "checkpoints" / "training-4"
        run_dir.with_name("away").rename(run_dir)
        service.run()
        context = json.loads((service.settings.runs.attempt(job_id, 3).path / "run.json").read_text())
        assert context["resume_from"] == [str(run_dir / "checkpoints" / f"training-{step}") for step in (4, 2)]


class TestFork:
    def test_begins_from_the_checkpoint_and_never_afresh(self, service: Service) -> None:
        """Deleted, damaged or unreadable: the job says so instead of training another student."""
        origin = service.submit(steps="4")
        service.run()
        newest, oldest = _checkpoints(service, origin)
        folder = service.settings.runs.attempt(origin, 1).path
        fine, gone, damaged, away = (_fork(service, origin, one) for one in (newest, oldest, newest, newest))
        service.run()
        context = json.loads((service.settings.runs.attempt(fine, 1).path / "run.json").read_text())
        assert context["resume_from"] == [str(folder / newest.path)]
        assert service.state(fine) is JobState.SUCCEEDED
        with service.database.write() as session:
            session.delete(session.get_one(Checkpoint, oldest.id))
        service.run()
        state = folder / newest.path / "state.bin"
        state.write_bytes(b"x" * state.stat().st_size)
        service.run()
        (folder / newest.path).rename(folder / "away")
        service.run()
        assert [_end(service, job) for job in (gone, damaged, away)] == [
            (JobState.FAILED, "checkpoint_gone"),
            (JobState.FAILED, "checkpoint_unreadable"),
            (JobState.QUEUED, "checkpoint_unreadable"),
        ]

    def test_the_trainer_of_the_origin_is_told_to_keep_it(self, service: Service) -> None:
        origin = service.submit(steps="1000", delay="0.05")
        thread = service.run_aside()
        told = service.settings.runs.attempt(origin, 1).path / PINNED_FILE
        wait_until(lambda: _checkpoints(service, origin))
        chosen = _checkpoints(service, origin)[-1]
        fork = _fork(service, origin, chosen)
        wait_until(lambda: told.exists() and json.loads(told.read_text()) == [Path(chosen.path).name], 10.0)
        service.do(fork, "request_cancel")
        wait_until(lambda: json.loads(told.read_text()) == [], 10.0)
        service.do(origin, "request_cancel", keep=Keep.NONE)
        thread.join(10)
        assert not thread.is_alive()


def _fork(service: Service, origin: str, checkpoint: Checkpoint) -> str:
    with service.database.write() as session:
        repository = JobRepository(session)
        spec = read_spec(repository.get(OWNER, origin).spec)
        row = session.get_one(Checkpoint, checkpoint.id)
        return repository.create(owner_id=OWNER, spec=spec, forked_from=row).id


def _end(service: Service, job_id: str) -> tuple[JobState, str | None]:
    job = service.job(job_id)
    return job.state, (job.failure or {}).get("code")


class TestWhatTheUserWants:
    def test_cancel_ends_grandchildren_that_ignore_sigterm(self, service: Service) -> None:
        job_id = service.submit(mode="stubborn", steps="1000", delay="0.05")
        thread = service.run_aside(stop_grace_seconds=0.3)
        wait_until(lambda: service.processes(job_id) == 5 and service.steps(job_id))
        service.do(job_id, "request_cancel", keep=Keep.LAST)
        wait_until(lambda: service.state(job_id) is JobState.CANCELLED, 5.0)
        assert service.processes(job_id) == 0
        thread.join(5)

    def test_pause_saves_and_resume_goes_on_from_there(self, service: Service) -> None:
        job_id = service.submit(steps="30", delay="0.05")
        thread = service.run_aside()
        wait_until(lambda: service.steps(job_id))
        service.do(job_id, "request_pause")
        wait_until(lambda: service.state(job_id) is JobState.PAUSED)
        thread.join(5)
        stopped_at = service.steps(job_id)
        assert service.attempts(job_id)[0].exit_code == 75
        service.do(job_id, "resume")
        service.run()
        assert service.state(job_id) is JobState.SUCCEEDED
        with service.database.read() as session:
            points = select(MetricPoint.step).where(MetricPoint.attempt == 2).order_by(MetricPoint.step)
            assert session.scalars(points).first() == stopped_at + 1

    def test_drain_saves_and_gives_the_job_back(self, service: Service) -> None:
        job_id = service.submit(steps="30", delay="0.05")
        thread = service.run_aside()
        wait_until(lambda: service.steps(job_id))
        service.drain.set()
        thread.join(5)
        job = service.job(job_id)
        assert (job.state, job.retries) == (JobState.QUEUED, 0)

    def test_a_worker_that_is_drained_by_its_row_gives_the_job_back(self, service: Service) -> None:
        with service.database.write() as session:
            worker = WorkerRepository(session).register(host="h", pid=1, heartbeat_seconds=5.0).id
        job_id = service.submit(steps="1000", delay="0.05")
        thread = service.run_aside(worker_id=worker)
        wait_until(lambda: service.steps(job_id))
        with service.database.write() as session:
            WorkerRepository(session).request_drain(worker)
        thread.join(10)
        job = service.job(job_id)
        assert (job.state, job.retries, service.attempts(job_id)[0].exit_code) == (JobState.QUEUED, 0, 75)

    def test_a_resume_right_after_a_pause_gives_the_slot_free_first(self, service: Service) -> None:
        job_id = service.submit(steps="1000", delay="0.05")
        thread = service.run_aside(heartbeat_seconds=0.5, lease_seconds=6.0)
        wait_until(lambda: service.steps(job_id))
        with service.database.write() as session:
            repository = JobRepository(session)
            repository.resume(repository.request_pause(repository.get(OWNER, job_id)))
        thread.join(10)
        assert not thread.is_alive()
        assert service.state(job_id) is JobState.QUEUED
        assert service.attempts(job_id)[0].exit_code == 75


def test_a_supervisor_that_crashes_leaves_no_process_and_no_lost_job(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = service.submit(mode="stubborn", steps="1000", delay="0.05")
    supervisor = service.supervisor(lease_seconds=SHORT_LEASE)

    def crash(*_: Any) -> None:
        if service.processes(job_id) == 5 and service.state(job_id) is JobState.RUNNING:
            raise RuntimeError("a slip of ours")

    monkeypatch.setattr(supervisor, "_steer", crash)
    with pytest.raises(RuntimeError, match="a slip of ours"):
        supervisor.run()
    assert service.processes(job_id) == 0
    assert service.state(job_id) is JobState.RUNNING, "nobody can say how it went"

    def swept() -> bool:
        return sweep(service.database, policy=RetryPolicy(base_seconds=0.0)).requeued == [job_id]

    wait_until(swept)
    again = service.supervisor()
    service.drain.set()
    again.run()
    assert service.state(job_id) is JobState.QUEUED


class TestDeploy:
    """SIGTERM of a worker, whatever its attempt is at."""

    def test_before_its_folder_is_made(self, service: Service) -> None:
        job_id = service.submit(steps="2")
        supervisor = service.supervisor()
        service.drain.set()
        supervisor.run()
        self.handed_back(service, job_id)
        assert service.attempts(job_id)[0].pid is None, "no trainer was started"

    def test_while_it_verifies_checkpoints(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        job_id = service.submit(mode="kill", at="5", steps="5", scheduling={"max_attempts": 9})
        service.run()
        real = run_folder.verify

        def interrupted(*arguments: Any, **options: Any) -> Any:
            service.drain.set()
            return real(*arguments, **options)

        monkeypatch.setattr(run_folder, "verify", interrupted)
        service.run()
        assert service.attempts(job_id)[1].pid is None
        self.handed_back(service, job_id, retries=1)

    @pytest.mark.parametrize("phase", ["preparing", "training", "evaluating"])
    def test_while_it_is_deaf(self, service: Service, phase: str) -> None:
        """A phase without steps may be longer than the grace. It is ended, and its job is not worse off."""
        job_id = service.submit(steps="2", linger=phase, goodbye="60")
        thread = service.run_aside(stop_grace_seconds=0.5)
        wait_until(lambda: service.job(job_id).phase == phase)
        began = time.monotonic()
        service.drain.set()
        thread.join(10)
        assert not thread.is_alive() and time.monotonic() - began < 8
        self.handed_back(service, job_id)
        assert service.attempts(job_id)[0].signal == signal.SIGKILL

    def test_while_it_exports(self, service: Service) -> None:
        """What is done within the grace is done."""
        job_id = service.submit(steps="2", linger="exporting", goodbye="0.3")
        thread = service.run_aside()
        wait_until(lambda: service.job(job_id).phase == "exporting")
        service.drain.set()
        thread.join(10)
        assert service.state(job_id) is JobState.SUCCEEDED

    def test_that_reaches_the_trainer_before_the_worker_has_noticed(self, service: Service) -> None:
        """As where a signal goes to all processes of a service at once."""
        job_id = service.submit(steps="1000", delay="0.05")
        supervisor = service.supervisor()
        thread = threading.Thread(target=supervisor.run, daemon=True)
        steer = supervisor._steer
        supervisor._steer = lambda group: None if service.drain.is_set() else steer(group)  # type: ignore[method-assign]
        thread.start()
        wait_until(lambda: service.steps(job_id))
        service.drain.set()
        os.kill(service.attempts(job_id)[0].pid, signal.SIGTERM)
        thread.join(10)
        self.handed_back(service, job_id)
        assert service.attempts(job_id)[0].exit_code == 75

    def handed_back(self, service: Service, job_id: str, retries: int = 0) -> None:
        job = service.job(job_id)
        assert (job.state, job.retries, job.not_before) == (JobState.QUEUED, retries, None)
        assert service.attempts(job_id)[-1].state is AttemptState.STOPPED
        assert service.processes(job_id) == 0


class TestPreparation:
    def test_its_time_is_not_the_trainers_silence(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        """Large checkpoints take long to verify; that counts against no trainer."""
        job_id = service.submit(mode="kill", at="5", steps="5", scheduling={"max_attempts": 9})
        service.run()
        real = run_folder.verify

        def slow(*arguments: Any, **options: Any) -> Any:
            time.sleep(1.0)
            return real(*arguments, **options)

        monkeypatch.setattr(run_folder, "verify", slow)
        service.run(start_watchdog_seconds=1.5, progress_watchdog_seconds=1.5)
        assert service.attempts(job_id)[1].pid is not None
        context = json.loads((service.settings.runs.attempt(job_id, 2).path / "run.json").read_text())
        assert len(context["resume_from"]) == 2

    def test_a_reason_to_stop_that_it_has_seen_stands(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        """A trainer that was started all the same would begin without the checkpoints that were not looked at."""
        job_id = service.submit(mode="kill", at="5", steps="5", scheduling={"max_attempts": 9})
        service.run()
        seen = iter([StopReason.DRAIN])
        monkeypatch.setattr(Supervisor, "_reason", lambda self: next(seen, None))
        service.run()
        attempt = service.attempts(job_id)[1]
        assert (attempt.state, attempt.pid) == (AttemptState.STOPPED, None)
        assert service.state(job_id) is JobState.QUEUED

    def test_an_outage_of_the_database_is_waited_out(self, service: Service) -> None:
        folder = service.settings.models_dir / "student"
        folder.mkdir()
        answers: list[Any] = [OperationalError("", {}, Exception("away")), folder]

        def model_folder(reference: str) -> Path:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        job_id = service.submit(student={"model": "model_abc"})
        service.supervisor(model_folder=model_folder).run()
        assert service.state(job_id) is JobState.SUCCEEDED


class TestPins:
    def test_the_trainer_is_told_of_pins_and_of_their_end(self, service: Service) -> None:
        job_id = service.submit(steps="1000", delay="0.05")
        thread = service.run_aside()
        told = service.settings.runs.attempt(job_id, 1).path / PINNED_FILE
        wait_until(lambda: len(_checkpoints(service, job_id)) >= 2)
        assert not told.exists(), "nothing to tell"
        chosen = _checkpoints(service, job_id)[-1]
        for pinned, names in ((True, [Path(chosen.path).name]), (False, [])):
            with service.database.write() as session:
                CheckpointRepository(session).set_pinned(session.get_one(Checkpoint, chosen.id), pinned)
            wait_until(lambda names=names: told.exists() and json.loads(told.read_text()) == names, 10.0)
        service.do(job_id, "request_cancel", keep=Keep.NONE)
        thread.join(10)
        assert not thread.is_alive()


def _checkpoints(service: Service, job_id: str) -> list[Checkpoint]:
    with service.database.read() as session:
        return CheckpointRepository(session).list(service.job(job_id)).items


class TestFence:
    def test_a_stale_attempt_kills_its_trainer_and_writes_nothing_more(self, service: Service) -> None:
        job_id = service.submit(steps="1000", delay="0.05")
        thread = service.run_aside()
        wait_until(lambda: service.steps(job_id))

        def taken_away() -> bool:
            """Not where a renewal came between the two: a lease that is renewed in time is the holder's."""
            with service.database.write() as session:
                job = session.get_one(type(service.job(job_id)), job_id)
                job.lease_expires_at = service.database.now(session)
            return job_id in sweep(service.database).requeued

        wait_until(taken_away)
        events = _event_count(service, job_id)
        thread.join(5)
        assert not thread.is_alive()
        assert service.processes(job_id) == 0
        assert service.state(job_id) is JobState.QUEUED
        assert _event_count(service, job_id) == events

    def test_a_renewal_keeps_a_job_longer_than_its_lease(self, service: Service) -> None:
        job_id = service.submit(steps="60", delay="0.05")
        service.run(lease_seconds=2.0, heartbeat_seconds=0.1)
        assert service.state(job_id) is JobState.SUCCEEDED
        assert len(service.attempts(job_id)) == 1


def _event_count(service: Service, job_id: str) -> int:
    with service.database.read() as session:
        return len(session.scalars(select(Event.seq).where(Event.job_id == job_id)).all())
