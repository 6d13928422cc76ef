"""What one owner may have, on each database: queued jobs, stored bytes; and who may go before others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from api.app import create_app
from api.services import Services
from store.db.tables import Checkpoint
from store.settings import Settings
from store.workers import WorkerRepository
from tests.api.conftest import Row, check_problem, upload
from tests.api.runs import Run

GIB = 2**30


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    return make_settings(database_url=database_url, max_queued_jobs=3)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def services(client: TestClient) -> Services:
    found: Services = client.app.state.services  # type: ignore[attr-defined]
    return found


def key(client: TestClient, admin: str | None = None, **wanted: Any) -> str:
    headers = {"Authorization": f"Bearer {admin}"} if admin is not None else {}
    made = client.post("/v1/api_keys", json={"name": "k", **wanted}, headers=headers)
    assert made.status_code == 201, made.text
    return str(made.json()["key"])


def use(client: TestClient, key: str) -> None:
    client.headers["Authorization"] = f"Bearer {key}"


def check_exceeded(response: Any, policy: str, limit: int) -> None:
    body = check_problem(response, 429, "quota_exceeded")
    assert body["retryable"] is True and (body["policy"], body["limit"]) == (policy, limit)
    wait = response.headers["retry-after"]
    assert int(wait) > 0
    assert response.headers["ratelimit"] == f'"{policy}";r=0;t={wait}'
    assert response.headers["ratelimit-policy"].startswith(f'"{policy}";q={limit};qu="')


class TestQueuedJobs:
    def test_no_more_than_so_many(self, client: TestClient, spec: Row) -> None:
        first, *_ = [client.post("/v1/jobs", json=spec).json() for _ in range(3)]
        check_exceeded(client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"}), "queued-jobs", 3)
        assert len(client.get("/v1/jobs").json()["data"]) == 3
        assert client.post("/v1/jobs?dry_run=true", json=spec).status_code == 200
        assert client.post(f"/v1/jobs/{first['id']}/resume").status_code == 202, "it is queued as it is"
        assert client.post(f"/v1/jobs/{first['id']}/cancel").status_code == 202
        assert client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"}).status_code == 201

    def test_many_at_the_same_time_are_no_more(self, client: TestClient, spec: Row) -> None:
        with ThreadPoolExecutor(12) as threads:
            statuses = list(threads.map(lambda _: client.post("/v1/jobs", json=spec).status_code, range(12)))
        assert sorted(statuses) == [201] * 3 + [429] * 9
        assert len(client.get("/v1/jobs").json()["data"]) == 3

    def test_each_way_into_the_queue_counts(self, client: TestClient, services: Services, spec: Row) -> None:
        def post(job: str, verb: str) -> Any:
            return client.post(f"/v1/jobs/{job}/{verb}", json={} if verb == "fork" else None)

        failed, paused = (client.post("/v1/jobs", json=spec).json()["id"] for _ in range(2))
        run = Run(services, failed)
        run.train(1)
        (run.folder / "checkpoints/training-1").mkdir(parents=True)
        run.fail(b"the end\n")
        assert post(paused, "pause").json()["state"] == "paused"
        for _ in range(3):
            assert client.post("/v1/jobs", json=spec).status_code == 201
        for job, verb in ((failed, "retry"), (failed, "fork"), (paused, "resume")):
            check_exceeded(post(job, verb), "queued-jobs", 3)
        assert [client.get(f"/v1/jobs/{job}").json()["state"] for job in (failed, paused)] == ["failed", "paused"]

    def test_each_owner_has_their_own(self, client: TestClient, spec: Row) -> None:
        for _ in range(3):
            assert client.post("/v1/jobs", json=spec).status_code == 201
        admin = key(client, scopes=["admin"])
        use(client, key(client, admin, owner_id="team"))
        spec["dataset"]["file"] = upload(client).json()["id"]
        assert client.post("/v1/jobs", json=spec).status_code == 201


class TestStoredBytes:
    @pytest.fixture
    def settings(self, make_settings: Callable[..., Settings], database_url: str) -> Settings:
        return make_settings(database_url=database_url, max_stored_bytes=1000)

    def test_uploads_count(self, client: TestClient, services: Services) -> None:
        content = b'{"instruction": "x", "output": "' + b"y" * 366 + b'"}\n'
        assert len(content) == 401
        first, second = (upload(client, content) for _ in range(2))
        assert (first.status_code, second.status_code) == (201, 201)
        check_exceeded(upload(client, content), "stored-bytes", 1000)
        assert len(list(services.settings.files_dir.iterdir())) == 2
        assert client.delete(f"/v1/files/{first.json()['id']}").status_code == 200
        # It counts until its bytes are gone.
        check_exceeded(upload(client, content), "stored-bytes", 1000)

    def test_many_at_the_same_time_are_no_more(self, client: TestClient, services: Services) -> None:
        content = b'{"instruction": "x", "output": "' + b"y" * 366 + b'"}\n'
        with ThreadPoolExecutor(8) as threads:
            statuses = list(threads.map(lambda _: upload(client, content).status_code, range(8)))
        assert sorted(statuses) == [201] * 2 + [429] * 6
        assert len(list(services.settings.files_dir.iterdir())) == 2

    def test_so_do_checkpoints_for_new_work(self, client: TestClient, services: Services, spec: Row) -> None:
        job = client.post("/v1/jobs", json=spec).json()["id"]
        Run(services, job).train(1)
        assert client.post("/v1/jobs", json=spec).status_code == 201
        with services.database.write() as session:
            session.execute(update(Checkpoint).values(bytes=900))
        check_exceeded(client.post("/v1/jobs", json=spec), "stored-bytes", 1000)


class TestPriority:
    def test_above_0_needs_a_scope(self, client: TestClient, spec: Row) -> None:
        urgent = {**spec, "scheduling": {"priority": 1}}
        local = client.post("/v1/jobs", json=urgent)
        assert local.status_code == 201, "the local user may do everything"
        admin = key(client, scopes=["admin"])
        plain, scoped = key(client, admin), key(client, admin, scopes=["jobs:priority"])
        use(client, plain)
        check_problem(client.post("/v1/jobs", json=urgent), 403, "scope_needed", "/scheduling/priority")
        check_problem(client.post("/v1/jobs?dry_run=true", json=urgent), 403, "scope_needed", "/scheduling/priority")
        low = client.post("/v1/jobs", json={**spec, "scheduling": {"priority": -5}}).json()["id"]
        use(client, scoped)
        assert client.post("/v1/jobs", json=urgent).status_code == 201
        assert client.post("/v1/workers/wrk_0/drain").status_code == 403, "it is no administrator's"

        def patched(job: str, priority: int) -> Any:
            return client.patch(f"/v1/jobs/{job}", json={"priority": priority}, headers={"If-Match": "*"})

        use(client, plain)
        assert patched(low, 0).status_code == 200
        check_problem(patched(low, 1), 403, "scope_needed", "/priority")
        use(client, scoped)
        assert patched(low, 9).status_code == 200
        use(client, plain)
        check_problem(patched(low, 10), 403, "scope_needed", "/priority")
        assert patched(low, 9).status_code == patched(low, 3).status_code == 200

    def test_a_fork_too(self, client: TestClient, services: Services, spec: Row) -> None:
        job = client.post("/v1/jobs", json={**spec, "scheduling": {"priority": 4}}).json()["id"]
        run = Run(services, job)
        run.train(1)
        (run.folder / "checkpoints/training-1").mkdir(parents=True)
        run.stop()
        use(client, key(client, key(client, scopes=["admin"])))
        for overrides in ({}, {"scheduling": {"priority": 2}}):
            forked = client.post(f"/v1/jobs/{job}/fork", json={"overrides": overrides})
            check_problem(forked, 403, "scope_needed", "/overrides/scheduling/priority")
        forked = client.post(f"/v1/jobs/{job}/fork", json={"overrides": {"scheduling": {"priority": 0}}})
        assert forked.status_code == 201


class TestResources:
    @pytest.fixture
    def worker(self, services: Services) -> Callable[..., str]:
        def register(host: str, *memory: int, cpus: int = 4, slots: int = 1) -> str:
            devices = {"cpus": cpus, "gpus": [{"index": n, "memory": size * GIB} for n, size in enumerate(memory)]}
            with services.database.write() as session:
                workers = WorkerRepository(session)
                return workers.register(host=host, pid=1, heartbeat_seconds=5.0, devices=devices, slots=slots).id

        return register

    @pytest.mark.parametrize(
        ("resources", "param"),
        [
            ({"gpus": 1024}, "/resources/gpus"),
            ({"gpus": 3}, "/resources/gpus"),
            ({"gpus": 3, "gpu_memory_gib": 10}, "/resources/gpus"),
            ({"gpus": 2, "gpu_memory_gib": 25}, "/resources/gpu_memory_gib"),
            ({"gpus": 1, "gpu_memory_gib": 81}, "/resources/gpu_memory_gib"),
        ],
    )
    def test_what_no_worker_has(
        self, client: TestClient, worker: Callable[..., str], spec: Row, resources: Row, param: str
    ) -> None:
        worker("box-a", 24, 24)
        worker("box-b", 80)
        for path in ("/v1/jobs", "/v1/jobs?dry_run=true"):
            body = check_problem(client.post(path, json={**spec, "resources": resources}), 422, "no_such_worker", param)
            assert "box-a 2 accelerators" in body["detail"] and "box-b 1 accelerators" in body["detail"]

    @pytest.mark.parametrize("resources", [{"gpus": 2, "gpu_memory_gib": 24}, {"gpu_memory_gib": 80}, {"gpus": 0}, {}])
    def test_what_one_has(self, client: TestClient, worker: Callable[..., str], spec: Row, resources: Row) -> None:
        worker("box-a", 24, 24)
        worker("box-b", 80)
        made = client.post("/v1/jobs", json={**spec, "resources": resources})
        assert made.status_code == 201 and made.json()["warnings"] == []

    def test_workers_without_accelerators(self, client: TestClient, worker: Callable[..., str], spec: Row) -> None:
        worker("cpu", cpus=4)
        assert client.post("/v1/jobs", json={**spec, "resources": {"gpus": 4}}).status_code == 201
        for resources, param in (({"gpus": 5}, "gpus"), ({"gpu_memory_gib": 1}, "gpu_memory_gib")):
            refused = client.post("/v1/jobs", json={**spec, "resources": resources})
            check_problem(refused, 422, "no_such_worker", f"/resources/{param}")

    def test_a_warning_where_none_is_online(
        self, client: TestClient, services: Services, worker: Callable[..., str], spec: Row
    ) -> None:
        gone = worker("gone", 80)
        with services.database.write() as session:
            WorkerRepository(session).stop(gone)
        wanted = {**spec, "resources": {"gpus": 8}}
        for response in (client.post("/v1/jobs?dry_run=true", json=wanted), client.post("/v1/jobs", json=wanted)):
            assert response.is_success
            assert [told["code"] for told in response.json()["warnings"]] == ["no_worker_online"]
