"""The Python client against the real API over a socket; the test plays the worker through the store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from minillm import ApiError, Client, SpecError
from minillm.specfile import read_spec
from tests.client.played import Service


def test_a_job_from_submission_to_download(service: Service, tmp_path: Path) -> None:
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
            assert (student / path.name).read_bytes() == path.read_bytes(), path.name
        assert job.student_model in [model.id for model in client.models()]


def test_the_example_of_the_manual(service: Service, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
    code = manual.partition("<!-- example -->\n```python\n")[2].partition("```")[0]
    monkeypatch.chdir(service.spec.parent)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert "path:teacher" in lines[0]
    assert lines[1].startswith("1 queued")
    assert lines[-1].startswith("409 ")


def test_what_a_job_leaves_behind(service: Service) -> None:
    job_id = service.submit()
    taken = service.claim()
    service.train(taken)
    checkpoint = {"path": "checkpoints/training-5", "bytes": 3, "manifest_sha256": "a" * 64, "best": True}
    service.say(taken, {"seq": 4, "type": "checkpoint", "phase": "training", "step": 5, **checkpoint})
    run_dir = service.settings.runs.attempt(job_id, 1).path
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


def test_attempts(service: Service) -> None:
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


def test_verbs(service: Service) -> None:
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


def test_fork_change_and_delete(service: Service) -> None:
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


def test_pin_expire_and_delete_a_checkpoint(service: Service) -> None:
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


def test_one_key_is_one_job(service: Service) -> None:
    spec = read_spec(service.spec)
    with service.client() as client:
        spec["dataset"]["file"] = client.upload_file(service.spec.parent / "rows.jsonl").id
        first = client.create_job(spec, idempotency_key="once")
        assert client.create_job(spec, idempotency_key="once").id == first.id
        assert len(client.jobs()) == 1


def test_lists_are_read_to_their_end(service: Service) -> None:
    made = {service.submit() for _ in range(3)}
    with service.client() as client:
        assert {job.id for job in client.jobs()} == made
        assert len(client.jobs(limit=2)) == 2
        assert client.jobs(state="running") == []
        assert len(client.files()) == 3


def test_watch_yields_each_change_to_the_end(service: Service) -> None:
    job_id = service.submit()
    with service.client() as client:
        watched = client.watch(job_id, interval=0.01)
        assert next(watched).state == "queued"
        taken = service.claim()
        service.train(taken)
        assert next(watched).state == "running"
        service.succeed(taken)
        assert [job.state for job in watched] == ["succeeded"]


def test_watching_for_long_holds_no_connections(service: Service) -> None:
    job_id = service.submit()
    polls = 0

    def count(_: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 120:  # more than a pool of connections has
            service.succeed(service.claim())

    with Client(service.url, sleep=count) as client:
        assert [job.state for job in client.watch(job_id)] == ["queued", "succeeded"]


def test_errors_name_the_field(service: Service) -> None:
    spec = read_spec(service.spec)
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


def test_a_file_that_no_job_uses_can_be_deleted(service: Service) -> None:
    with service.client() as client:
        file = client.upload_file(service.spec.parent / "rows.jsonl")
        client.delete_file(file.id)
        assert client.files() == []
        used = client.job(service.submit()).dataset["file"]
        with pytest.raises(ApiError) as caught:
            client.delete_file(used)
        assert (caught.value.status, caught.value.code) == (409, "in_use")
