"""The client and the command against the real API over a socket; the test plays the worker through the store."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.app import create_app
from client import ApiError, MinillmClient, SpecError
from client.cli import app
from minillm_core.spec import MANIFEST_FILE, STUDENT_DIR, Failure, FailureCategory, Manifest, ManifestFile, parse_event
from store.database import Database
from store.leases import Claim, claim, finish, record
from store.model_folders import describe
from store.outcomes import Outcome, Student
from store.settings import Settings
from tests.api.model_folders import write_model

SPEC = """
name: smol
seed: 7
teacher: {model: "path:teacher"}
student: {prune_teacher: {layers: 2}}
dataset: {file: rows.jsonl, template: plain}
method: {type: minillm, rollouts_per_round: 8}
training: {max_steps: 20, rows_per_step: 4, learning_rate: 5e-6, max_prompt_tokens: 16, max_new_tokens: 16}
"""


@dataclass
class Service:
    """A served API, its store and a folder with a spec to submit."""

    url: str
    settings: Settings
    database: Database
    spec: Path

    def client(self) -> MinillmClient:
        return MinillmClient(self.url)

    def submit(self) -> str:
        with self.client() as client:
            file = client.upload_file(self.spec.parent / "rows.jsonl")
            spec = json.loads(json.dumps(_spec_of(self.spec)))
            spec["dataset"]["file"] = file.id
            return client.create_job(spec).id

    def claim(self) -> Claim:
        with self.database.write() as session:
            taken = claim(session, "wrk_test", "host", 1, 60.0)
        assert taken is not None
        return taken

    def say(self, taken: Claim, *events: dict[str, Any]) -> None:
        lines = [{"time": datetime.now(UTC).isoformat(), **event} for event in events]
        with self.database.write() as session:
            record(session, taken, [parse_event(json.dumps(line)) for line in lines])

    def train(self, taken: Claim) -> None:
        """The first steps of an attempt."""
        progress = {"step": 5, "total_steps": 20, "fraction": 0.25, "tokens_per_second": 900.0, "seconds_left": 60.0}
        values = {"loss": 1.25, "reverse_kl": 0.5, "dev_rouge_l": 30.0}
        self.say(
            taken,
            {"seq": 1, "type": "phase", "phase": "training"},
            {"seq": 2, "type": "progress", "phase": "training", **progress},
            {"seq": 3, "type": "metrics", "phase": "training", "step": 5, "values": values},
        )

    def checkpoint(self, taken: Claim) -> None:
        fields = {"path": "checkpoints/training-5", "bytes": 10, "manifest_sha256": "a" * 64}
        self.say(taken, {"seq": 5, "type": "checkpoint", "phase": "training", "step": 5, **fields})

    def succeed(self, taken: Claim) -> Path:
        """Export a student and end the attempt as a worker does."""
        run = self.settings.run_dir(taken.job_id, taken.attempt)
        folder = run / STUDENT_DIR
        run.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.settings.models_dir / "teacher", folder)
        files = [
            ManifestFile(
                name=path.name, bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
            )
            for path in sorted(folder.iterdir())
        ]
        manifest = Manifest(kind="student", created_at="2026-01-01T00:00:00Z", files=files).dumps()
        (folder / MANIFEST_FILE).write_bytes(manifest)
        report = {"before": {"rouge_l": 20.0}, "after": {"rouge_l": 31.5}, "steps": 20}
        event = {
            "seq": 6,
            "type": "student",
            "path": STUDENT_DIR,
            "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
            "bytes": sum(file.bytes for file in files),
            "parameters": 10,
            "teacher_parameters": 20,
            "report": report,
        }
        self.say(taken, event)
        with self.database.write() as session:
            finish(session, taken, Outcome.succeeded(Student(manifest=manifest, description=describe(folder))))
        return folder

    def fail(self, taken: Claim) -> None:
        failure = Failure(code="dataset_invalid", category=FailureCategory.USER, message="every prompt is too long")
        with self.database.write() as session:
            finish(session, taken, Outcome.failed(failure, exit_code=64, log=b"Traceback: the end\n"))


def _spec_of(path: Path) -> dict[str, Any]:
    from client.specfile import read_spec

    return read_spec(path)


@pytest.fixture
def service(
    tmp_path: Path, sqlite_template: Path, serve: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Service]:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(sqlite_template, data / "minillm.db")
    # No broker answers there: jobs are announced to nobody, and nothing must wait for that.
    settings = Settings(data_dir=data, broker_url="redis+socket:///nonexistent/socket")
    settings.models_dir.mkdir()
    write_model(settings.models_dir, "teacher")
    work = tmp_path / "work"
    work.mkdir()
    (work / "spec.yaml").write_text(SPEC)
    rows = [{"instruction": f"Name number {n}.", "output": "the cat"} for n in range(40)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    database = Database(settings.database_url)
    url = serve(create_app(settings))
    monkeypatch.setenv("MINILLM_URL", url)
    yield Service(url, settings, database, work / "spec.yaml")
    database.dispose()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


class TestClient:
    def test_a_job_from_submission_to_download(self, service: Service, tmp_path: Path) -> None:
        job_id = service.submit()
        with service.client() as client:
            job = client.job(job_id)
            assert (job.state, job.name, job.seed, job.queue_position) == ("queued", "smol", 7, 1)
            taken = service.claim()
            service.train(taken)
            job = client.job(job_id)
            assert (job.state, job.phase, job.progress.step) == ("running", "training", 5)
            assert job.metrics["reverse_kl"] == 0.5
            folder = service.succeed(taken)
            job = client.wait(job_id, timeout=5.0)
            assert job.state == "succeeded"
            assert job.report is not None
            assert job.report["after"]["rouge_l"] == 31.5
            student = client.download(job_id, tmp_path / "student")
            for path in folder.iterdir():
                assert path.name == MANIFEST_FILE or (student / path.name).read_bytes() == path.read_bytes()
            assert job.student_model in [model.id for model in client.models()]

    def test_what_a_job_leaves_behind(self, service: Service) -> None:
        job_id = service.submit()
        taken = service.claim()
        service.train(taken)
        checkpoint = {"path": "checkpoints/training-5", "bytes": 3, "manifest_sha256": "a" * 64, "best": True}
        service.say(taken, {"seq": 4, "type": "checkpoint", "phase": "training", "step": 5, **checkpoint})
        run_dir = service.settings.run_dir(job_id, 1)
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "stderr.log").write_text("loading\nstep 5\n")
        with service.client() as client:
            events = client.events(job_id)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert client.events(job_id, after=events[-2].seq) == events[-1:]
            (point,) = client.metrics(job_id, names=["loss"])
            assert (point.step, point.values) == (5, {"loss": 1.25})
            assert client.metrics(job_id, since_step=6) == []
            (found,) = client.checkpoints(job_id)
            assert (found.step, found.best) == (5, True)
            first = client.logs(job_id)
            assert first.text == "loading\nstep 5\n"
            assert client.logs(job_id, offset=first.next_offset).text == ""

    def test_attempts(self, service: Service) -> None:
        job_id = service.submit()
        with service.client() as client:
            assert client.attempts(job_id) == []
            service.fail(service.claim())
            client.retry(job_id)
            service.claim()
            first, second = client.attempts(job_id)
            assert (first.attempt, first.state, first.host, first.exit_code) == (1, "failed", "host", 64)
            assert first.failure is not None and first.failure.category == "user"
            assert first.started_at is not None and first.ended_at is not None
            assert (second.attempt, second.state, second.failure, second.ended_at) == (2, "active", None, None)

    def test_verbs(self, service: Service) -> None:
        job_id = service.submit()
        with service.client() as client:
            assert client.pause(job_id).state == "paused"
            assert client.resume(job_id).state == "queued"
            assert client.cancel(job_id, keep="none").state == "cancelled"
            with pytest.raises(ApiError) as caught:
                client.cancel(job_id)
            assert caught.value.status == 409
            other = service.submit()
            service.fail(service.claim())
            assert client.job(other).state == "failed"
            assert client.retry(other, start_from="start").state == "queued"

    def test_fork_change_and_delete(self, service: Service) -> None:
        origin = service.submit()
        taken = service.claim()
        service.train(taken)
        service.checkpoint(taken)
        service.succeed(taken)
        with service.client() as client:
            (checkpoint,) = client.checkpoints(origin)
            fork = client.fork(origin, checkpoint=checkpoint.id, overrides={"training": {"max_steps": 40}})
            assert (fork.state, fork.training["max_steps"]) == ("queued", 40)
            changed = client.update(fork.id, name="longer", priority=7, max_runtime_seconds=3600)
            assert (changed.name, changed.scheduling["priority"]) == ("longer", 7)
            with pytest.raises(ApiError) as caught:
                client.delete(origin)
            assert (caught.value.status, caught.value.code) == (409, "in_use")
            client.cancel(fork.id)
            client.delete(origin)
            with pytest.raises(ApiError) as caught:
                client.job(origin)
            assert caught.value.status == 404

    def test_pin_expire_and_delete_a_checkpoint(self, service: Service) -> None:
        job_id = service.submit()
        taken = service.claim()
        service.train(taken)
        service.checkpoint(taken)
        never = datetime(2040, 1, 1, tzinfo=UTC)
        with service.client() as client:
            (listed,) = client.checkpoints(job_id)
            assert client.checkpoint(job_id, listed.id) == listed
            pinned = client.update_checkpoint(job_id, listed.id, pinned=True, expires_at=never)
            assert (pinned.pinned, pinned.expires_at) == (True, never)
            with pytest.raises(ApiError) as caught:
                client.delete_checkpoint(job_id, listed.id)
            assert (caught.value.status, caught.value.code) == (409, "pinned")
            loose = client.update_checkpoint(job_id, listed.id, pinned=False)
            assert (loose.pinned, loose.expires_at) == (False, never), "what is left out stays"
            assert client.update_checkpoint(job_id, listed.id, expires_at=None).expires_at is None
            client.delete_checkpoint(job_id, listed.id)
            assert client.checkpoints(job_id) == []
            with pytest.raises(ApiError) as caught:
                client.checkpoint(job_id, listed.id)
            assert caught.value.status == 404

    def test_one_key_is_one_job(self, service: Service) -> None:
        spec = _spec_of(service.spec)
        with service.client() as client:
            spec["dataset"]["file"] = client.upload_file(service.spec.parent / "rows.jsonl").id
            first = client.create_job(spec, idempotency_key="once")
            assert client.create_job(spec, idempotency_key="once").id == first.id
            assert len(client.jobs()) == 1

    def test_lists_are_read_to_their_end(self, service: Service) -> None:
        made = {service.submit() for _ in range(3)}
        with service.client() as client:
            assert {job.id for job in client.jobs()} == made
            assert len(client.jobs(limit=2)) == 2
            assert client.jobs(state="running") == []
            assert len(client.files()) == 3

    def test_watch_yields_each_change_to_the_end(self, service: Service) -> None:
        job_id = service.submit()
        with service.client() as client:
            watched = client.watch(job_id, interval=0.01)
            assert next(watched).state == "queued"
            taken = service.claim()
            service.train(taken)
            assert next(watched).state == "running"
            service.succeed(taken)
            assert [job.state for job in watched] == ["succeeded"]

    def test_watching_for_long_holds_no_connections(self, service: Service) -> None:
        job_id = service.submit()
        polls = 0

        def count(_: float) -> None:
            nonlocal polls
            polls += 1
            if polls == 120:  # more than a pool of connections has
                service.succeed(service.claim())

        with MinillmClient(service.url, sleep=count) as client:
            assert [job.state for job in client.watch(job_id)] == ["queued", "succeeded"]

    def test_errors_name_the_field(self, service: Service) -> None:
        spec = _spec_of(service.spec)
        with service.client() as client:
            spec["dataset"]["file"] = client.upload_file(service.spec.parent / "rows.jsonl").id
            spec["training"]["learning_rate"] = -1
            with pytest.raises(ApiError) as caught:
                client.create_job(spec)
            assert (caught.value.status, caught.value.field) == (422, "training.learning_rate")
            with pytest.raises(ApiError) as caught:
                client.job("job_00000000000000000000000000")
            assert (caught.value.status, caught.value.code) == (404, "not_found")
            with pytest.raises(SpecError):
                client.upload_file("absent.jsonl")


class TestCommand:
    def test_submit_uploads_and_prints_the_id(self, service: Service) -> None:
        result = run("submit", str(service.spec))
        assert result.exit_code == 0, result.output
        job_id = result.stdout.strip()
        assert re.fullmatch(r"job_[0-9a-z]{26}", job_id)
        assert "uploaded rows.jsonl as file_" in result.stderr
        assert job_id in run("jobs").stdout
        assert "rows.jsonl" in run("files").stdout
        assert "path:teacher" in run("models").stdout

    def test_watch_without_a_terminal(self, service: Service) -> None:
        job_id = service.submit()
        taken = service.claim()
        service.train(taken)
        service.succeed(taken)
        result = run("watch", job_id)
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout
        assert "succeeded" in result.stdout
        assert "ROUGE-L 30.00" in result.stdout

    def test_watch_of_a_failed_job_says_why(self, service: Service) -> None:
        job_id = service.submit()
        service.fail(service.claim())
        result = run("watch", job_id)
        assert result.exit_code == 1
        assert "dataset_invalid (user): every prompt is too long" in result.stdout
        assert "Traceback: the end" in run("logs", job_id).stdout
        assert "failed" in run("events", job_id).stdout

    def test_verbs(self, service: Service) -> None:
        job_id = service.submit()
        assert "paused" in run("pause", job_id).stdout
        assert "queued" in run("resume", job_id).stdout
        assert "cancelled" in run("cancel", job_id, "--keep", "none").stdout
        waiting = run("submit", str(service.spec)).stdout.strip()
        assert "number 1 in the queue" in run("change", waiting, "--priority", "5").stdout
        again = run("cancel", job_id)
        assert again.exit_code == 2
        assert again.stderr.startswith("error: ")

    def test_fork_and_delete(self, service: Service, tmp_path: Path) -> None:
        job_id = service.submit()
        taken = service.claim()
        service.train(taken)
        service.checkpoint(taken)
        service.succeed(taken)
        overrides = tmp_path / "overrides.yaml"
        overrides.write_text("training: {learning_rate: 1e-4}\n")
        fork = run("fork", job_id, "--overrides", str(overrides)).stdout.strip()
        with service.client() as client:
            assert client.job(fork).training["learning_rate"] == 1e-4
        assert run("delete", fork).exit_code == 2, "it has not finished"
        run("cancel", fork)
        assert run("delete", fork).stdout.strip() == f"{fork} is deleted"

    def test_attempts(self, service: Service) -> None:
        job_id = service.submit()
        service.fail(service.claim())
        head, row = run("attempts", job_id).stdout.splitlines()
        cells = dict(zip(head.split("\t"), row.split("\t"), strict=True))
        assert (cells["ATTEMPT"], cells["STATE"], cells["HOST"], cells["EXIT"]) == ("1", "failed", "host", "64")
        assert (cells["SIGNAL"], cells["FAILURE"]) == ("", "dataset_invalid")

    def test_checkpoints_pin_and_unpin(self, service: Service) -> None:
        job_id = service.submit()
        taken = service.claim()
        service.train(taken)
        service.checkpoint(taken)
        head, row = run("checkpoints", job_id).stdout.splitlines()
        assert head.split("\t") == ["ID", "PHASE", "STEP", "BYTES", "BEST", "PINNED", "EXPIRES"]
        checkpoint, *rest = row.split("\t")
        assert rest == ["training", "5", "10", "", "", ""]
        assert run("pin", job_id, checkpoint).stdout.strip() == f"{checkpoint} is pinned"
        with service.client() as client:
            client.update_checkpoint(job_id, checkpoint, expires_at=datetime(2040, 1, 1, tzinfo=UTC))
        assert run("checkpoints", job_id).stdout.splitlines()[1].split("\t")[5:] == [
            "pinned",
            "2040-01-01T00:00:00+00:00",
        ]
        assert run("unpin", job_id, checkpoint).stdout.strip() == f"{checkpoint} is not pinned"
        assert "pinned" not in run("checkpoints", job_id).stdout
        assert run("pin", job_id, "ckpt_0").exit_code == 2

    def test_download(self, service: Service, tmp_path: Path) -> None:
        job_id = service.submit()
        early = run("download", job_id, "--to", str(tmp_path / "student"))
        assert early.exit_code == 2
        service.succeed(service.claim())
        result = run("download", job_id, "--to", str(tmp_path / "student"))
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(tmp_path / "student")
        assert (tmp_path / "student/config.json").is_file()

    @pytest.mark.parametrize(
        ("before", "after", "field"),
        [
            ("learning_rate: 5e-6", "learning_rate: -1", "training.learning_rate"),
            ("seed: 7", "sed: 7", "sed"),
            ("path:teacher", "path:nobody", "teacher.model"),
            ("layers: 2", "layers: 99", "student.prune_teacher.layers"),
            ("file: rows.jsonl", "file: absent.jsonl", "dataset.file"),
            ("type: minillm", "type: alchemy", "method"),
        ],
    )
    def test_bad_input_is_one_line_that_names_the_field(
        self, service: Service, before: str, after: str, field: str
    ) -> None:
        assert before in SPEC
        service.spec.write_text(SPEC.replace(before, after))
        result = run("submit", str(service.spec))
        assert result.exit_code == 2
        errors = [line for line in result.stderr.splitlines() if not line.startswith("uploaded ")]
        assert len(errors) == 1
        assert errors[0].startswith(f"error: {field}")

    def test_a_bad_row_names_its_line(self, service: Service) -> None:
        (service.spec.parent / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
        result = run("submit", str(service.spec))
        assert result.exit_code == 2
        assert result.stderr.startswith("error: dataset.file: rows.jsonl: Line 2: ")


class TestWithoutService:
    def test_nobody_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINILLM_URL", "http://127.0.0.1:9")
        monkeypatch.setattr("client.transport.ATTEMPTS", 1)
        result = run("jobs")
        assert result.exit_code == 1
        assert result.stderr.startswith("error: no answer from http://127.0.0.1:9")

    def test_no_spec(self, tmp_path: Path) -> None:
        result = run("submit", str(tmp_path / "absent.yaml"))
        assert result.exit_code == 2
        assert "no such file" in result.stderr

    def test_chat_with_what_is_no_model(self, tmp_path: Path) -> None:
        result = run("chat", str(tmp_path))
        assert result.exit_code == 2
        assert "config.json" in result.stderr

    def test_help_lists_every_command(self) -> None:
        result = run("--help")
        for name in (
            "up",
            "demo",
            "submit",
            "jobs",
            "watch",
            "logs",
            "cancel",
            "pause",
            "resume",
            "retry",
            "download",
            "fork",
            "change",
            "delete",
            "attempts",
            "checkpoints",
            "pin",
            "unpin",
        ):
            assert name in result.stdout
