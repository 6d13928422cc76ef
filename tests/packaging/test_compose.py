"""docker-compose.yml: its structure, and its commands run here until a job has succeeded."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import socket
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from minillm import Client
from store.settings import Settings
from tests import services
from tests.conftest import fresh_postgres_database
from tests.minillm_core.tiny_runs import tiny_spec
from tests.packaging.compose import (
    COMPOSE_FILE,
    ROOT,
    VARIABLE,
    LocalStack,
    MissingVariable,
    environment_of,
    load,
    seconds,
)
from tests.tiny_models import write_tiny_dataset, write_tiny_model
from worker.process.identity import ATTEMPT_VARIABLE

SECRETS = {
    "POSTGRES_PASSWORD": "a0b1c2d3e4f5a6b7c8d9",
    "MINILLM_SECRET_KEY": "9f8e7d6c5b4a39281706",
    "MINILLM_BOOTSTRAP_API_KEY": "00112233445566778899",
}
OURS = {"migrate", "api", "worker", "sweeper"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return load(SECRETS)


class TestStructure:
    def test_the_services(self, document: dict[str, Any]) -> None:
        assert set(document["services"]) == OURS | {"redis", "postgres"}

    def test_all_but_the_migration_are_started_again(self, document: dict[str, Any]) -> None:
        restart = {name: service["restart"] for name, service in document["services"].items()}
        assert restart.pop("migrate") == "no"
        assert set(restart.values()) == {"unless-stopped"}

    def test_health_checks_have_times(self, document: dict[str, Any]) -> None:
        for name in ("redis", "postgres", "api", "worker"):
            check = document["services"][name]["healthcheck"]
            assert check["test"][0] in ("CMD", "CMD-SHELL")
            assert seconds(check["timeout"]) > 0 and seconds(check["interval"]) > 0 and check["retries"] >= 3

    def test_the_schema_comes_first(self, document: dict[str, Any]) -> None:
        assert document["services"]["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
        for name in OURS - {"migrate"}:
            needs = document["services"][name]["depends_on"]
            assert needs["migrate"] == {"condition": "service_completed_successfully"}

    def test_the_worker_has_its_accelerators(self, document: dict[str, Any]) -> None:
        worker = document["services"]["worker"]
        (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"] and device["driver"] == "nvidia"
        assert worker["build"]["args"] == {"TORCH": "cuda"}
        assert worker["init"] is True and worker["shm_size"]
        assert "deploy" not in document["services"]["api"]

    def test_only_the_worker_has_a_trainer(self, document: dict[str, Any]) -> None:
        for name in OURS - {"worker"}:
            service = document["services"][name]
            assert service["build"]["args"] == {"TORCH": "none"}
            assert service["image"] != document["services"]["worker"]["image"]

    def test_the_worker_has_time_for_its_checkpoint(self, document: dict[str, Any]) -> None:
        worker = document["services"]["worker"]
        settings = _settings(worker)
        assert seconds(worker["stop_grace_period"]) >= settings.stop_grace_seconds + 30
        assert settings.cancel_grace_seconds >= settings.stop_grace_seconds + 30
        assert _settings(document["services"]["sweeper"]).cancel_grace_seconds == settings.cancel_grace_seconds

    def test_what_must_outlive_a_container_is_on_a_volume(self, document: dict[str, Any]) -> None:
        named = set(document["volumes"])
        for name, service in document["services"].items():
            for mount in service.get("volumes", []):
                source = mount.split(":")[0]
                assert source in named or source.startswith((".", "/")), f"{name}: {mount}"
        for name in ("api", "worker", "sweeper"):
            assert "data:/data" in document["services"][name]["volumes"]
            assert environment_of(document["services"][name], {})["MINILLM_DATA_DIR"] == "/data"

    def test_variables_are_settings(self, document: dict[str, Any]) -> None:
        known = {f"MINILLM_{name.upper()}" for name in Settings.model_fields}
        for name in OURS:
            assert set(document["services"][name]["environment"]) <= known, name

    def test_the_api_may_listen_beyond_the_loopback(self, document: dict[str, Any]) -> None:
        settings = _settings(document["services"]["api"])
        assert not settings.is_loopback
        settings.check_bind(has_keys=settings.bootstrap_api_key is not None)

    @pytest.mark.parametrize("name", sorted(OURS))
    def test_commands_are_modules(self, document: dict[str, Any], name: str) -> None:
        python, flag, module = document["services"][name]["command"]
        assert (python, flag) == ("python", "-m")
        assert _runs(module)

    def test_the_queue_keeps_what_it_was_told(self, document: dict[str, Any]) -> None:
        command = document["services"]["redis"]["command"]
        assert command[command.index("--appendonly") + 1] == "yes"
        assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


class TestSecrets:
    @pytest.mark.parametrize("name", sorted(SECRETS))
    def test_each_must_be_given(self, name: str) -> None:
        with pytest.raises(MissingVariable, match=name):
            load({other: value for other, value in SECRETS.items() if other != name})

    def test_keys_are_the_apis_alone(self, document: dict[str, Any]) -> None:
        for name in OURS - {"api"}:
            given = environment_of(document["services"][name], {}).values()
            assert not {SECRETS["MINILLM_SECRET_KEY"], SECRETS["MINILLM_BOOTSTRAP_API_KEY"]} & set(given)

    def test_only_the_api_is_published(self, document: dict[str, Any]) -> None:
        published = {name: service["ports"] for name, service in document["services"].items() if "ports" in service}
        assert published == {"api": ["127.0.0.1:8000:8000"]}

    def test_the_example_documents_every_variable(self) -> None:
        used = {match["name"]: match["kind"] for match in VARIABLE.finditer(COMPOSE_FILE.read_text()) if match["name"]}
        used |= dict.fromkeys(re.findall(r"^ +(MINILLM_\w+):(?: +#.*)?$", COMPOSE_FILE.read_text(), re.MULTILINE), "-")
        example = (ROOT / ".env.example").read_text()
        required = set(re.findall(r"^(\w+)=", example, re.MULTILINE))
        optional = set(re.findall(r"^#(\w+)=", example, re.MULTILINE))
        assert required == {name for name, kind in used.items() if kind == "?"} == set(SECRETS)
        assert optional == set(used) - required
        assert not re.search(r"^\w+=.", example, re.MULTILINE), "the example gives no secret a value"


class TestImage:
    def test_what_is_copied_exists_and_is_not_ignored(self) -> None:
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        kept = {line[1:] for line in ignored if line.startswith("!")}
        assert "*" in ignored
        copied = set()
        for line in _dockerfile():
            if line.startswith("COPY ") and "--from=" not in line:
                copied |= set(line.split()[1:-1])
        assert copied == kept
        assert not [name for name in copied if not (ROOT / name).exists()]

    def test_every_package_of_the_project_is_copied(self) -> None:
        rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"migrations"}
        copied = {line.split()[1] for line in _dockerfile() if line.startswith("COPY ")}
        assert rooms - {"tests", "benchmarks"} <= copied

    def test_it_runs_as_nobody_special_and_gets_signals(self) -> None:
        lines = _dockerfile()
        assert [line for line in lines if line.startswith("USER ")] == ["USER minillm"]
        assert lines[-1].startswith('CMD ["')

    def test_it_holds_no_secret(self) -> None:
        for line in _dockerfile():
            if line.startswith(("ENV", "ARG")):
                assert not re.search(r"KEY|PASSWORD|TOKEN|SECRET", line)

    def test_the_folders_are_those_of_compose(self, document: dict[str, Any]) -> None:
        text = " ".join(_dockerfile())
        worker = environment_of(document["services"]["worker"], {})
        for name in ("MINILLM_DATA_DIR", "MINILLM_MODELS_ROOT"):
            assert f"{name}={worker[name]}" in text


@pytest.mark.timeout(900)
def test_its_commands_run_a_job(document: dict[str, Any], tmp_path: Path) -> None:
    """migrate, api, worker and sweeper with the file's own environment, on the PostgreSQL and Redis of this machine."""
    server, broker = services.postgres_url(), services.redis_url()
    if server is None or broker is None:
        missing = [name for name, url in (("PostgreSQL", server), ("Redis", broker)) if url is None]
        pytest.skip(f"{' and '.join(missing)} not answering on 127.0.0.1")
    services.USED.update(("postgresql", "redis"))
    write_tiny_model(tmp_path / "models" / "teacher", layers=4, scale=4.0)
    dataset = write_tiny_dataset(tmp_path / "data.jsonl")
    port = _free_port()
    with fresh_postgres_database(server) as database:
        there = environment_of(document["services"]["api"], SECRETS)
        assert (
            there["MINILLM_DATABASE_URL"]
            == f"postgresql://minillm:{SECRETS['POSTGRES_PASSWORD']}@postgres:5432/minillm"
        )
        assert there["MINILLM_BROKER_URL"] == "redis://redis:6379/0"
        stack = LocalStack(
            document,
            given={"redis", "postgres"},
            here={
                there["MINILLM_DATABASE_URL"]: database,
                there["MINILLM_BROKER_URL"]: broker,
                "/data": str(tmp_path / "data"),
                "/models": str(tmp_path / "models"),
                "0.0.0.0": "127.0.0.1",
                "8000": str(port),
            },
            environment=SECRETS,
            folder=tmp_path,
        )
        with stack.ended():
            stack.start(patience=180)
            stack.wait_until_healthy({"api", "worker"}, patience=180)
            _run_a_job(f"http://127.0.0.1:{port}", dataset, tmp_path, stack)
            ends = stack.stop()
        # uvicorn ends by the signal that stopped it once it has closed its connections.
        assert ends.pop("api") in (0, -15), stack.logs()
        assert ends == {"worker": 0, "sweeper": 0}, stack.logs()
        assert not _trainers_below(tmp_path)


def _run_a_job(url: str, dataset: Path, folder: Path, stack: LocalStack) -> None:
    assert httpx.get(f"{url}/v1/jobs").status_code == 401
    key = SECRETS["MINILLM_BOOTSTRAP_API_KEY"]
    spec = tiny_spec(name="compose")
    with Client(url, key) as client:
        spec["dataset"]["file"] = client.upload_file(dataset).id
        job = client.create_job(spec)
        try:
            job = client.wait(job.id, timeout=480, interval=0.5)
        except TimeoutError as error:
            pytest.fail(f"{error}\n{stack.logs()}")
        assert job.state == "succeeded", f"{job.failure}\n{stack.logs()}"
        manifest = client.artifact(job.id)
        student = client.download(job.id, folder / "student")
        for file in manifest.files:
            assert hashlib.sha256((student / file.name).read_bytes()).hexdigest() == file.sha256
        rows = re.findall(r"^\| (`[^|]+)\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
        documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        measured = {name for point in client.metrics(job.id) for name in point.values}
        assert measured <= documented
        assert {"loss", "reverse_kl", "dev_rouge_l"} <= measured
    packed = httpx.get(
        f"{url}/v1/jobs/{job.id}/artifact?format=tar", headers={"Authorization": f"Bearer {key}"}, timeout=60
    )
    with tarfile.open(fileobj=BytesIO(packed.raise_for_status().content)) as archive:
        names = {name.rpartition("/")[2] for name in archive.getnames()}
    assert {"model.safetensors", "config.json"} <= names


def _settings(service: dict[str, Any]) -> Settings:
    """The settings that a container would read from its variables."""
    given = environment_of(service, {})
    return Settings(**{name.removeprefix("MINILLM_").lower(): value for name, value in given.items()})


def _runs(module: str) -> bool:
    """Whether ``python -m module`` has something to run."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{module}.__main__")
    return spec is not None


def _dockerfile() -> list[str]:
    """Its instructions, one a line, without comments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [line for line in joined.splitlines() if line.strip()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _trainers_below(folder: Path) -> list[int]:
    """Living processes of an attempt whose run folder lies below ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            if ATTEMPT_VARIABLE in process.environ() and str(folder) in " ".join(process.cmdline()):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found
