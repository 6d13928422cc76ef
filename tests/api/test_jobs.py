"""Creating, listing, watching and steering jobs; on every database that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from api.app import create_app
from api.services import Services
from store.settings import Settings
from tests.api.conftest import Row, check_problem
from tests.api.runs import Run


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    return make_settings(database_url=database_url)


class TestCreate:
    def test_the_answer(self, client: TestClient, spec: Row) -> None:
        response = client.post("/v1/jobs", json=spec)
        assert response.status_code == 201
        job = response.json()
        assert response.headers["location"] == f"/v1/jobs/{job['id']}"
        assert job["id"].startswith("job_") and job["object"] == "job"
        assert (job["state"], job["desired_state"], job["phase"]) == ("queued", "run", None)
        assert job["queue_position"] == 1 and job["attempt"] == 0
        assert job["method"]["rollouts_per_round"] == 4 and job["method"]["gamma"] is None, "the method as given"
        assert job["training"]["learning_rate"] == 5e-6
        assert job["progress"] == {
            "step": 0, "total_steps": None, "fraction": 0.0, "tokens_per_second": None, "seconds_left": None
        }  # fmt: skip
        assert [told["code"] for told in job.pop("warnings")] == ["no_worker_online"]
        assert client.get(f"/v1/jobs/{job['id']}").json() == job

    def test_dry_run_makes_nothing(self, client: TestClient, spec: Row) -> None:
        response = client.post("/v1/jobs", json=spec, params={"dry_run": "true"}, headers={"Idempotency-Key": "k"})
        assert response.status_code == 200
        body = response.json()
        assert body["object"] == "job.dry_run"
        assert body["method"]["gamma"] == 1.0 and body["method"]["rollouts_per_round"] == 4
        assert body["teacher"]["layers"] == 4 and body["student"]["parameters"] < body["teacher"]["parameters"]
        assert body["dataset"]["rows"] == 4
        assert client.get("/v1/jobs").json()["data"] == []
        assert client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"}).status_code == 201

    def test_dry_run_of_a_pruning(self, client: TestClient, spec: Row) -> None:
        spec["student"] = {"prune_teacher": {"layers": [0, 2, 3]}}
        body = client.post("/v1/jobs?dry_run=true", json=spec).json()
        assert body["student"]["layers"] == 3 and body["student"]["context_length"] == 512

    def test_position_in_the_queue_is_by_priority(self, client: TestClient, spec: Row) -> None:
        first = client.post("/v1/jobs", json=spec).json()["id"]
        urgent = client.post("/v1/jobs", json={**spec, "scheduling": {"priority": 5}}).json()["id"]
        assert client.get(f"/v1/jobs/{urgent}").json()["queue_position"] == 1
        assert client.get(f"/v1/jobs/{first}").json()["queue_position"] == 2

    def test_nothing_is_said_of_a_transaction_that_fails(
        self, client: TestClient, spec: Row, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        woken: list[str] = []
        monkeypatch.setattr("store.announcer.Announcer.announce", lambda _, job_id, gpus: woken.append(job_id))

        def refuse(session: Session) -> None:
            if session.info.get("wake_after_commit"):
                raise RuntimeError("the commit failed")

        event.listen(Session, "before_commit", refuse)
        try:
            check_problem(client.post("/v1/jobs", json=spec), 500, "internal_error")
        finally:
            event.remove(Session, "before_commit", refuse)
        assert woken == []
        assert client.get("/v1/jobs").json()["data"] == []
        job = client.post("/v1/jobs", json=spec).json()
        assert woken == [job["id"]], "announced once, after the commit"

    def test_what_was_checked_a_moment_ago_may_be_gone(self, client: TestClient, spec: Row) -> None:
        for seed in (1, 2):
            assert client.post("/v1/jobs", json={**spec, "seed": seed}).status_code == 201
        for job in client.get("/v1/jobs").json()["data"]:
            client.post(f"/v1/jobs/{job['id']}/cancel")
        assert client.delete(f"/v1/files/{spec['dataset']['file']}").status_code == 200
        check_problem(client.post("/v1/jobs", json=spec), 422, "file_not_found", "/dataset/file")
        assert len(client.get("/v1/jobs").json()["data"]) == 2


class TestIdempotency:
    def test_the_same_key_gets_the_first_answer(self, client: TestClient, spec: Row) -> None:
        first = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "a"})
        client.post(f"/v1/jobs/{first.json()['id']}/cancel")
        client.delete(f"/v1/files/{spec['dataset']['file']}")
        again = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "a"})
        assert (again.status_code, again.text) == (201, first.text)
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers["location"] == first.headers["location"]

    def test_another_key_is_another_job(self, client: TestClient, spec: Row) -> None:
        ids = {client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": key}).json()["id"] for key in "ab"}
        assert len(ids) == 2

    def test_another_content_is_refused(self, client: TestClient, spec: Row) -> None:
        client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "a"})
        response = client.post("/v1/jobs", json={**spec, "seed": 3}, headers={"Idempotency-Key": "a"})
        check_problem(response, 422, "idempotency_key_reused", "Idempotency-Key")

    def test_a_refused_request_leaves_the_key_free(self, client: TestClient, spec: Row) -> None:
        bad = {**spec, "teacher": {"model": "path:nowhere"}}
        assert client.post("/v1/jobs", json=bad, headers={"Idempotency-Key": "a"}).status_code == 422
        assert client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "a"}).status_code == 201

    def test_in_parallel_it_is_one_job(self, client: TestClient, spec: Row) -> None:
        def post(_: int) -> Any:
            return client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "p"})

        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(post, range(8)))
        assert {response.status_code for response in responses} == {201}
        assert len({response.text for response in responses}) == 1
        assert len(client.get("/v1/jobs").json()["data"]) == 1

    def test_a_key_of_odd_characters(self, client: TestClient, spec: Row) -> None:
        response = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "a b"})
        check_problem(response, 422, "invalid_value", "Idempotency-Key")


class TestList:
    def test_pages(self, client: TestClient, spec: Row) -> None:
        ids = [client.post("/v1/jobs", json=spec).json()["id"] for _ in range(5)][::-1]
        first = client.get("/v1/jobs?limit=2").json()
        assert [job["id"] for job in first["data"]] == ids[:2]
        assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[0], ids[1], True)
        rest = client.get("/v1/jobs", params={"limit": 3, "after": first["last_id"]}).json()
        assert [job["id"] for job in rest["data"]] == ids[2:]
        assert rest["has_more"] is False
        back = client.get("/v1/jobs", params={"limit": 2, "before": ids[4]}).json()
        assert [job["id"] for job in back["data"]] == ids[2:4]
        oldest = client.get("/v1/jobs?order=asc&limit=1").json()
        assert oldest["data"][0]["id"] == ids[4]

    def test_filters(self, client: TestClient, spec: Row) -> None:
        red = client.post("/v1/jobs", json={**spec, "metadata": {"team": "red", "a.b'\"]": "x"}}).json()["id"]
        blue = client.post("/v1/jobs", json={**spec, "metadata": {"team": "blue"}}).json()["id"]
        client.post(f"/v1/jobs/{blue}/cancel")

        def found(**params: Any) -> list[str]:
            return [job["id"] for job in client.get("/v1/jobs", params=params).json()["data"]]

        assert found(status="queued") == [red]
        assert found(state="cancelled") == [blue]
        assert found(status=["queued", "cancelled"]) == [blue, red]
        assert found(**{"metadata[team]": "red"}) == [red]
        assert found(**{"metadata[a.b'\"]]": "x"}) == [red]
        assert found(**{"metadata[team]": "blue", "status": "queued"}) == []

    @pytest.mark.parametrize(
        ("params", "code", "param"),
        [
            ({"limit": 0}, "invalid_value", "limit"),
            ({"limit": 101}, "invalid_value", "limit"),
            ({"after": "job_nothing"}, "unknown_cursor", "after"),
            ({"after": "a", "before": "b"}, "invalid_value", "before"),
            ({"status": "done"}, "invalid_value", "status"),
            ({"order": "up"}, "invalid_value", "order"),
        ],
    )
    def test_bad_parameters(self, client: TestClient, params: Row, code: str, param: str) -> None:
        check_problem(client.get("/v1/jobs", params=params), 422, code, param)


class TestConditional:
    def test_304_until_something_changes(self, client: TestClient, services: Services, job: Row) -> None:
        path = f"/v1/jobs/{job['id']}"
        etag = client.get(path).headers["etag"]
        unchanged = client.get(path, headers={"If-None-Match": etag})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == etag
        Run(services, job["id"])
        changed = client.get(path, headers={"If-None-Match": etag})
        assert changed.status_code == 200 and changed.json()["state"] == "starting"

    def test_a_new_place_in_the_queue_is_a_change(self, client: TestClient, spec: Row) -> None:
        first = client.post("/v1/jobs", json=spec).json()["id"]
        second = client.post("/v1/jobs", json=spec).json()["id"]
        etag = client.get(f"/v1/jobs/{second}").headers["etag"]
        client.post(f"/v1/jobs/{first}/cancel")
        response = client.get(f"/v1/jobs/{second}", headers={"If-None-Match": etag})
        assert response.status_code == 200 and response.json()["queue_position"] == 1

    def test_patch_needs_the_version(self, client: TestClient, job: Row) -> None:
        path = f"/v1/jobs/{job['id']}"
        check_problem(client.patch(path, json={"name": "new"}), 428, "precondition_required", "If-Match")
        etag = client.get(path).headers["etag"]
        response = client.patch(path, json={"name": "new", "metadata": {"a": "b"}}, headers={"If-Match": etag})
        assert response.status_code == 200, response.text
        assert (response.json()["name"], response.json()["metadata"]) == ("new", {"a": "b"})
        assert response.headers["etag"] != etag
        stale = client.patch(path, json={"name": "newer"}, headers={"If-Match": etag})
        check_problem(stale, 412, "precondition_failed", "If-Match")
        assert client.get(path).json()["name"] == "new"
        both = client.patch(path, json={"priority": 9, "max_runtime_seconds": 60}, headers={"If-Match": "*"}).json()
        assert (both["scheduling"]["priority"], both["scheduling"]["max_runtime_seconds"]) == (9, 60)

    @pytest.mark.parametrize("patch", [{"state": "succeeded"}, {"owner_id": "me"}, {"priority": 101}])
    def test_patch_refuses(self, client: TestClient, job: Row, patch: Row) -> None:
        response = client.patch(f"/v1/jobs/{job['id']}", json=patch, headers={"If-Match": "*"})
        assert response.status_code == 422


class TestVerbs:
    def test_cancel_a_queued_job(self, client: TestClient, job: Row) -> None:
        response = client.post(f"/v1/jobs/{job['id']}/cancel")
        assert response.status_code == 202 and response.json()["state"] == "cancelled"
        again = client.post(f"/v1/jobs/{job['id']}/cancel")
        check_problem(again, 409, "job_finished")
        assert again.headers["x-should-retry"] == "false"

    def test_cancel_a_running_job(self, client: TestClient, services: Services, job: Row) -> None:
        run = Run(services, job["id"])
        for keep in ("best", "none"):
            response = client.post(f"/v1/jobs/{job['id']}/cancel", json={"keep": keep})
            assert response.status_code == 202 and response.json()["state"] == "cancelling"
        run.stop()
        assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"

    def test_cancel_with_an_unknown_word(self, client: TestClient, job: Row) -> None:
        response = client.post(f"/v1/jobs/{job['id']}/cancel", json={"keep": "everything"})
        check_problem(response, 422, "invalid_value", "/keep")

    def test_pause_and_resume(self, client: TestClient, services: Services, job: Row) -> None:
        run = Run(services, job["id"])
        run.train(1)
        assert client.post(f"/v1/jobs/{job['id']}/pause").json()["state"] == "pausing"
        run.stop()
        assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "paused"
        response = client.post(f"/v1/jobs/{job['id']}/resume")
        assert response.status_code == 202 and response.json()["state"] == "queued"

    def test_retry(self, client: TestClient, services: Services, job: Row) -> None:
        check_problem(client.post(f"/v1/jobs/{job['id']}/retry"), 409, "not_retryable")
        Run(services, job["id"]).fail()
        failed = client.get(f"/v1/jobs/{job['id']}").json()
        assert failed["state"] == "failed"
        assert failed["failure"]["code"] == "dataset_invalid" and failed["failure"]["category"] == "user"
        response = client.post(f"/v1/jobs/{job['id']}/retry", json={"from": "start"})
        assert response.status_code == 202 and response.json()["state"] == "queued"
        assert response.json()["failure"] is None

    def test_fork(self, client: TestClient, services: Services, job: Row) -> None:
        path = f"/v1/jobs/{job['id']}/fork"
        check_problem(client.post(path, json={}), 409, "no_checkpoint")
        Run(services, job["id"]).train(2)
        overrides = {"name": "longer", "training": {"max_steps": 9}}
        response = client.post(path, json={"overrides": overrides}, headers={"Idempotency-Key": "f"})
        assert response.status_code == 201, response.text
        fork = response.json()
        assert fork["id"] != job["id"] and fork["state"] == "queued"
        assert (fork["name"], fork["training"]["max_steps"]) == ("longer", 9)
        assert fork["training"]["rows_per_step"] == job["training"]["rows_per_step"]
        again = client.post(path, json={"overrides": overrides}, headers={"Idempotency-Key": "f"})
        assert again.json()["id"] == fork["id"]
        checkpoint = client.get(f"/v1/jobs/{job['id']}/checkpoints").json()["data"][-1]["id"]
        assert client.post(path, json={"checkpoint": checkpoint}).status_code == 201

    @pytest.mark.parametrize(
        ("fork", "code", "param"),
        [
            ({"overrides": {"training": {"learning_rate": -1}}}, "invalid_value", "/overrides/training/learning_rate"),
            ({"overrides": {"colour": 1}}, "unknown_field", "/overrides/colour"),
            ({"overrides": {"teacher": {"model": "path:large"}}}, "not_overridable", "/overrides/teacher"),
            ({"colour": 1}, "unknown_field", "/colour"),
        ],
    )
    def test_fork_refuses(
        self, client: TestClient, services: Services, job: Row, fork: Row, code: str, param: str
    ) -> None:
        Run(services, job["id"]).train(1)
        check_problem(client.post(f"/v1/jobs/{job['id']}/fork", json=fork), 422, code, param)

    def test_delete(self, client: TestClient, job: Row) -> None:
        path = f"/v1/jobs/{job['id']}"
        check_problem(client.delete(path), 409, "job_not_finished")
        client.post(f"{path}/cancel")
        response = client.delete(path)
        assert (response.status_code, response.content) == (204, b"")
        check_problem(client.get(path), 404, "not_found")
        check_problem(client.delete(path), 404, "not_found")
        assert client.get("/v1/jobs").json()["data"] == []

    @pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry"])
    def test_unknown_job(self, client: TestClient, verb: str) -> None:
        check_problem(client.post(f"/v1/jobs/job_nothing/{verb}"), 404, "not_found")


class TestRunning:
    def test_progress_and_metrics(self, client: TestClient, services: Services, job: Row) -> None:
        Run(services, job["id"]).train(2)
        running = client.get(f"/v1/jobs/{job['id']}").json()
        assert (running["state"], running["phase"], running["attempt"]) == ("running", "training", 1)
        assert running["queue_position"] is None
        assert running["metrics"] == {"loss": 0.5, "=reverse_kl": 2.0}
        assert running["progress"]["step"] == 2 and running["progress"]["total_steps"] == 2
        assert 0 <= running["progress"]["seconds_left"] <= 10

    def test_success(self, client: TestClient, services: Services, job: Row) -> None:
        run = Run(services, job["id"])
        run.train(1)
        run.succeed()
        done = client.get(f"/v1/jobs/{job['id']}").json()
        assert done["state"] == "succeeded" and done["finished_at"] is not None
        assert done["report"] == {"after": {"rouge_l": 0.5}}
        model = client.get(f"/v1/models/{done['student_model']}").json()
        assert (model["kind"], model["job"], model["reference"]) == ("student", job["id"], done["student_model"])


@pytest.fixture
def two_apps(settings: Settings) -> Iterator[tuple[FastAPI, FastAPI]]:
    yield create_app(settings), create_app(settings)


def test_two_processes_share_everything(two_apps: tuple[FastAPI, FastAPI], client: TestClient, job: Row) -> None:
    with TestClient(two_apps[0]) as one, TestClient(two_apps[1]) as two:
        assert one.post(f"/v1/jobs/{job['id']}/pause").json()["state"] == "paused"
        assert two.get(f"/v1/jobs/{job['id']}").json()["state"] == "paused"
