"""The `minillm` command against the real API over a socket; the test plays the worker through the store."""

from __future__ import annotations

import csv
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from minillm.cli import COMMANDS, app
from tests.client.played import SPEC, Service


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


class TestCommand:
    def test_submit_uploads_and_prints_the_id(self, service: Service) -> None:
        result = run("submit", str(service.spec))
        assert result.exit_code == 0, result.output
        job_id = result.stdout.strip()
        assert re.fullmatch(r"job_[0-9a-z]{26}", job_id)
        assert "uploaded rows.jsonl as file_" in result.stderr
        assert re.search(r"^warning: .*no worker", result.stderr, re.MULTILINE | re.IGNORECASE)
        assert job_id in run("jobs").stdout
        assert "rows.jsonl" in run("files").stdout
        (service.settings.models_dir / "empty").mkdir()
        assert "path:teacher" in run("models").stdout and "there is no config.json" in run("models").stdout

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

    def test_show_is_a_job_in_full(self, service: Service) -> None:
        job_id = service.submit()
        taken = service.claim()
        service.train(taken)
        service.succeed(taken)
        lines = run("show", job_id).stdout.splitlines()
        assert lines[0] == f"{job_id}  smol"
        told = dict(line.split(maxsplit=1) for line in lines[2 : lines.index("", 2)])
        assert (told["state"], told["attempt"]) == ("succeeded", "1")
        assert told["student"].startswith("model_")
        spec, report = "\n".join(lines).split("# The job, as it was asked for\n")[1].split("# The report\n")
        assert yaml.safe_load(spec)["training"]["max_steps"] == 20
        assert yaml.safe_load(report)["after"] == {"rouge_l": 31.5}

    def test_a_dry_run_makes_nothing(self, service: Service) -> None:
        result = run("submit", str(service.spec), "--dry-run")
        assert result.exit_code == 0, result.output
        assert "no job was made" in result.stdout and "rows 40" in result.stdout
        assert "max_steps: 20" in result.stdout
        service.spec.write_text(SPEC.replace("layers: 2", "layers: 99"))
        refused = run("submit", str(service.spec), "--dry-run")
        assert (refused.exit_code, "student.prune_teacher.layers" in refused.stderr) == (2, True)
        with service.client() as client:
            assert (client.jobs(), client.files()) == ([], [])
        assert run("submit", str(service.spec), "--dry-run", "--watch").exit_code == 2

    def test_upload(self, service: Service) -> None:
        rows = service.spec.parent / "rows.jsonl"
        file_id = run("upload", str(rows), "--purpose", "dataset").stdout.strip()
        with service.client() as client:
            assert client.file(file_id).filename == "rows.jsonl"
            copy = client.download_file(file_id, rows.with_name("copy"))
        assert copy.read_bytes() == rows.read_bytes()
        assert run("upload", str(rows), "--purpose", "poetry").exit_code == 2

    def test_metrics(self, service: Service) -> None:
        job_id = service.submit()
        service.train(service.claim())
        head, *rows = (line.split("\t") for line in run("metrics", job_id).stdout.splitlines())
        assert head == ["METRIC", "POINTS", "FIRST", "LAST", "LEAST", "MOST"]
        assert ["loss", "1", "1.25", "1.25", "1.25", "1.25"] in rows
        series = run("metrics", job_id, "--name", "loss", "--name", "reverse_kl").stdout
        assert series == "PHASE\tSTEP\tloss\treverse_kl\ntraining\t5\t1.25\t0.5\n"
        (point,) = csv.DictReader(run("metrics", job_id, "--csv").stdout.splitlines())
        assert (point["step"], point["loss"], point["dev_rouge_l"]) == ("5", "1.25", "30.0")

    def test_workers_drain_and_undrain(self, service: Service) -> None:
        worker = service.worker()

        def state() -> str:
            head, row = (line.split("\t") for line in run("workers").stdout.splitlines())
            assert row[0] == worker
            return row[head.index("STATE")]

        assert state() == "online"
        assert run("drain", worker).stdout == f"{worker} takes no more jobs\n"
        assert state() == "draining"
        assert run("undrain", worker).stdout == f"{worker} takes jobs\n"
        assert state() == "online"
        assert run("drain", "wrk_0").exit_code == 2

    def test_keys(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        made = run("keys", "create", "operations", "--scope", "admin")
        assert made.exit_code == 0, made.output
        monkeypatch.setenv("MINILLM_API_KEY", made.stdout.strip())
        other = run("keys", "create", "search team", "--owner", "search", "--days", "1")
        head, newest, _ = (line.split("\t") for line in run("keys", "list").stdout.splitlines())
        shown = dict(zip(head, newest, strict=True))
        assert (shown["NAME"], shown["OWNER"], shown["STATE"], shown["SCOPES"]) == (
            "search team",
            "search",
            "valid",
            "",
        )
        assert other.stdout.strip() not in run("keys", "list").stdout
        assert run("keys", "revoke", shown["ID"]).stdout == f"{shown['ID']} is revoked\n"
        monkeypatch.setenv("MINILLM_API_KEY", other.stdout.strip())
        refused = run("jobs")
        assert (refused.exit_code, "MINILLM_API_KEY" in refused.stderr) == (2, True)

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
        assert re.fullmatch(rf"error: {re.escape(field)}(\.\w+)?: [^/].*", errors[0])
        with service.client() as client:
            assert client.files() == [], "what was uploaded for a job that was refused is gone"

    def test_every_fault_has_a_line(self, service: Service) -> None:
        service.spec.write_text(SPEC.replace("5e-6", "-1").replace("seed: 7", "sed: 7"))
        result = run("submit", str(service.spec))
        assert [line.split(": ")[1] for line in result.stderr.splitlines() if line.startswith("error: ")] == [
            "training.learning_rate",
            "sed",
        ]

    def test_a_bad_row_names_its_line(self, service: Service) -> None:
        (service.spec.parent / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
        result = run("submit", str(service.spec))
        assert result.exit_code == 2
        assert result.stderr.startswith("error: dataset.file: rows.jsonl: Line 2: ")


class TestWithoutService:
    def test_nobody_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINILLM_URL", "http://127.0.0.1:9")
        monkeypatch.setattr("minillm.transport.MAX_RETRIES", 0)
        result = run("jobs")
        assert result.exit_code == 1
        said, advice = result.stderr.splitlines()
        assert said.startswith("error: no answer from http://127.0.0.1:9")
        assert "minillm up" in advice and "MINILLM_URL" in advice

    def test_a_data_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        result = run("up", "--data-dir", str(tmp_path / "file" / "data"))
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: the data folder {tmp_path}/file/data cannot be made: ")

    def test_version(self) -> None:
        assert re.fullmatch(r"minillm \d+\.\d+\S*\n", run("--version").stdout)

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
        assert all(command.__name__ in result.stdout for command in COMMANDS)
        assert "keys" in result.stdout
