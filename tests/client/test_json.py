"""`--json`: every command has it, says exactly what the service answered, and tells problems as documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

from minillm.cli import app
from tests.client.played import Service
from tests.tiny_models import write_tiny_model


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--json"])


def said(*arguments: str) -> Any:
    """The one document of a command that went well."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def commands(group: TyperGroup, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*prefix, name))
        else:
            assert isinstance(command, TyperCommand)
            yield (*prefix, name), command


def every_command() -> dict[str, TyperCommand]:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return {" ".join(name): command for name, command in commands(group)}


@pytest.mark.parametrize("name", every_command())
def test_every_command_has_it(name: str) -> None:
    assert "--json" in {option for parameter in every_command()[name].params for option in parameter.opts}


@dataclass
class Played:
    """A service in which every command finds what it is about."""

    service: Service
    finished: str
    running: str
    queued: str
    checkpoint: str
    worker: str

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.service.url}{path}").raise_for_status().json()


@pytest.fixture
def played(service: Service) -> Played:
    finished = service.submit()
    taken = service.claim()
    service.train(taken)
    service.checkpoint(taken)
    service.succeed(taken)
    (service.settings.runs.attempt(finished, 1).path / "checkpoints" / "training-5").mkdir(parents=True)
    running = service.submit()
    taken = service.claim()
    service.train(taken)
    log = service.settings.runs.attempt(running, 1).path / "stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text("loading\nstep 5 \x1b[2J\n")
    queued = service.submit()
    with service.client() as client:
        (checkpoint,) = client.checkpoints(finished)
    return Played(service, finished, running, queued, checkpoint.id, service.worker())


class TestAnswers:
    def test_what_is_read_is_what_the_service_answers(self, played: Played) -> None:
        job = f"/v1/jobs/{played.finished}"
        assert said("show", played.finished) == played.get(job)
        assert said("attempts", played.finished)["data"] == played.get(f"{job}/attempts")["data"]
        for arguments, path in {
            ("jobs", "--limit", "1"): "/v1/jobs?limit=1",
            ("jobs", "--state", "queued"): "/v1/jobs?state=queued",
            ("files",): "/v1/files",
            ("models",): "/v1/models",
            ("events", played.finished): f"{job}/events",
            ("metrics", played.finished): f"{job}/metrics",
            ("metrics", played.finished, "--name", "loss"): f"{job}/metrics?names=loss",
            ("attempts", played.finished): f"{job}/attempts",
            ("checkpoints", played.finished): f"{job}/checkpoints",
            ("logs", played.running): f"/v1/jobs/{played.running}/logs",
        }.items():
            assert said(*arguments) == played.get(path), arguments
        (worker,) = said("workers")["data"]
        assert worker["id"] == played.worker

    def test_what_is_changed_is_as_it_is_then(self, played: Played, tmp_path: Path) -> None:
        assert said("change", played.queued, "--name", "new") == played.get(f"/v1/jobs/{played.queued}")
        assert said("pause", played.queued) == played.get(f"/v1/jobs/{played.queued}")
        assert said("resume", played.queued) == played.get(f"/v1/jobs/{played.queued}")
        assert said("cancel", played.queued) == played.get(f"/v1/jobs/{played.queued}")
        assert said("delete", played.queued) == {"id": played.queued, "object": "job", "deleted": True}
        pinned = said("pin", played.finished, played.checkpoint)
        assert pinned == played.get(f"/v1/jobs/{played.finished}/checkpoints/{played.checkpoint}")
        assert said("unpin", played.finished, played.checkpoint) == {**pinned, "pinned": False}
        fork = said("fork", played.finished)
        assert fork == {**played.get(f"/v1/jobs/{fork['id']}"), "warnings": []}
        for verb in ("drain", "undrain"):
            worker = said(verb, played.worker)
            assert (worker["id"], worker["draining"]) == (played.worker, verb == "drain")
        (tmp_path / "corpus.txt").write_text("The cat sat.\n")
        uploaded = said("upload", str(tmp_path / "corpus.txt"), "--purpose", "corpus")
        assert uploaded == played.get(f"/v1/files/{uploaded['id']}")
        fetched = said("download", played.finished, "--to", str(tmp_path / "student"))
        assert fetched == {
            **played.get(f"/v1/jobs/{played.finished}/artifact"),
            "folder": str(tmp_path / "student"),
        }

    def test_submit(self, played: Played) -> None:
        before = said("files")
        found = said("submit", str(played.service.spec), "--dry-run")
        assert (found["object"], found["teacher"]["reference"], found["dataset"]["rows"]) == (
            "job.dry_run",
            "path:teacher",
            40,
        )
        assert said("files") == before, "what was uploaded to be checked is gone"
        made = said("submit", str(played.service.spec))
        assert (made["state"], made["object"]) == ("queued", "job")
        assert made["id"] in [job["id"] for job in said("jobs")["data"]]

    def test_retry(self, service: Service) -> None:
        job_id = service.submit()
        service.fail(service.claim())
        assert said("retry", job_id, "--from-start")["state"] == "queued"

    def test_keys(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        made = said("keys", "create", "operations", "--scope", "admin", "--days", "7")
        monkeypatch.setenv("MINILLM_API_KEY", made["key"])
        (listed,) = said("keys", "list")["data"]
        assert listed == {name: value for name, value in made.items() if name not in ("key", "last_used_at")} | {
            "last_used_at": listed["last_used_at"]
        }
        assert said("keys", "revoke", made["id"]) == {"id": made["id"], "object": "api_key", "revoked": True}


class TestStreams:
    def test_watch_is_a_document_a_line(self, played: Played) -> None:
        result = run("watch", played.finished)
        (line,) = result.stdout.splitlines()
        assert (result.exit_code, json.loads(line)["state"]) == (0, "succeeded")

    def test_of_a_failed_job_it_ends_with_1(self, service: Service) -> None:
        job_id = service.submit()
        service.fail(service.claim())
        result = run("watch", job_id)
        assert (result.exit_code, json.loads(result.stdout)["failure"]["code"]) == (1, "dataset_invalid")
        assert result.stderr == ""

    def test_events_and_logs_that_are_followed(self, played: Played) -> None:
        lines = [json.loads(line) for line in run("events", played.finished, "--follow").stdout.splitlines()]
        assert lines == played.get(f"/v1/jobs/{played.finished}/events")["data"]
        log = played.service.settings.runs.attempt(played.finished, 1).path / "stderr.log"
        log.write_text("loading\n")
        (piece,) = run("logs", played.finished, "--follow").stdout.splitlines()
        assert json.loads(piece)["text"] == "loading\n"


def test_chat(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student = write_tiny_model(tmp_path / "student")
    answer = said("chat", str(student), "--prompt", "river", "--max-new-tokens", "3")
    assert answer.keys() == {"prompt", "answer", "tokens"}
    assert (answer["prompt"], 1 <= answer["tokens"] <= 3) == ("river", True)


class TestProblems:
    def problem(self, status: int, *arguments: str) -> dict[str, Any]:
        result = run(*arguments)
        assert result.exit_code == status, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        found: dict[str, Any] = json.loads(line)
        assert {"type", "title", "detail", "code", "param", "errors", "retryable"} <= found.keys()
        return found

    def test_of_the_service(self, service: Service) -> None:
        found = self.problem(2, "show", "job_00000000000000000000000000")
        assert (found["status"], found["code"], found["type"]) == (404, "not_found", "urn:minillm:problem:not_found")
        service.spec.write_text(service.spec.read_text().replace("5e-6", "-1").replace("seed: 7", "sed: 7"))
        found = self.problem(2, "submit", str(service.spec))
        assert {error["param"] for error in found["errors"]} == {"/training/learning_rate", "/sed"}

    def test_of_the_command_itself(self, tmp_path: Path) -> None:
        found = self.problem(2, "submit", str(tmp_path / "absent.yaml"))
        assert (found["code"], "no such file" in found["detail"]) == ("invalid_spec", True)
        assert "--json" in self.problem(2, "metrics", "job_1", "--csv")["detail"]
        (tmp_path / "file").touch()
        assert "cannot be made" in self.problem(1, "up", "--data-dir", str(tmp_path / "file" / "data"))["detail"]
        assert "config.json" in self.problem(2, "chat", str(tmp_path))["detail"]
        assert "no such file" in self.problem(2, "demo", "--spec", str(tmp_path / "absent.yaml"))["detail"]

    @pytest.mark.parametrize("arguments", [("show",), ("jobs", "--limit", "many"), ("juggle",), ("watch", "a", "b")])
    def test_of_its_use(self, arguments: tuple[str, ...]) -> None:
        assert self.problem(2, *arguments)["code"] == "usage"

    def test_when_nobody_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINILLM_URL", "http://127.0.0.1:9")
        monkeypatch.setattr("minillm.transport.MAX_RETRIES", 0)
        assert self.problem(1, "jobs")["code"] == "unreachable"
