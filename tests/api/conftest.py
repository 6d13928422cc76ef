"""A real app on a real SQLite database and a models root of tiny folders. Nobody answers at the broker's socket."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.services import Services
from store.settings import Settings
from tests.api.model_folders import write_model

Row = dict[str, Any]
BOOTSTRAP = "bootstrap-key-for-tests"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`teacher` of 4 layers, `student` of 2, and one folder for each thing that can be wrong with a model."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "teacher", layers=4)
    write_model(root, "student", layers=2)
    write_model(root, "large", layers=6)
    write_model(root, "foreign", layers=2, words=("other", "words"))
    write_model(root, "classifier", architecture="LlamaForSequenceClassification")
    write_model(root, "short", layers=2, context=64)
    write_model(root, "coded", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (root / "adapter" / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (root / "not-a-model").mkdir()
    return root


@pytest.fixture
def own_models(tiny_models: Path, tmp_path: Path) -> Path:
    """A copy of the models root that a test may change."""
    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


@pytest.fixture
def make_settings(tmp_path: Path, sqlite_template: Path, tiny_models: Path) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        if not (data / "minillm.db").exists():
            shutil.copy(sqlite_template, data / "minillm.db")
        known: dict[str, Any] = {
            "data_dir": data,
            "models_root": tiny_models,
            "broker_url": f"redis+socket://{tmp_path}/nobody.sock",
            "min_free_bytes": 0,
            "allowed_hosts": ["testserver"],
            "max_file_bytes": 100_000,
        }
        return Settings(**{**known, **changes})

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def services(app: FastAPI) -> Services:
    found: Services = app.state.services
    return found


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def locked_client(make_settings: Callable[..., Settings]) -> Iterator[TestClient]:
    """A service that has a bootstrap key; the client sends none."""
    app = create_app(make_settings(bootstrap_api_key=BOOTSTRAP))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def upload(client: TestClient, content: bytes | None = None, **form: str) -> Any:
    """The response to an upload; four good rows when no content is given."""
    rows = jsonl(*({"instruction": f"the cat {number}", "output": "runs"} for number in range(4)))
    files = {"file": ("rows.jsonl", rows if content is None else content, "application/jsonl")}
    return client.post("/v1/files", files=files, data=form)


@pytest.fixture
def file_id(client: TestClient) -> str:
    response = upload(client)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


@pytest.fixture
def spec(file_id: str) -> Row:
    """A job that passes every check."""
    return {
        "name": "tiny",
        "teacher": {"model": "path:teacher"},
        "student": {"model": "path:student"},
        "dataset": {"file": file_id},
        "method": {"type": "minillm", "rollouts_per_round": 4},
        "training": {"max_steps": 2, "rows_per_step": 4, "max_prompt_tokens": 32, "max_new_tokens": 32},
    }


@pytest.fixture
def job(client: TestClient, spec: Row) -> Row:
    response = client.post("/v1/jobs", json=spec)
    assert response.status_code == 201, response.text
    found: Row = response.json()
    return found


def check_problem(response: Any, status: int, code: str, param: str | None = None) -> Row:
    """The body, checked to be problem+json of this status, code and field."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: Row = response.json()
    assert body["status"] == status
    assert (body["code"], body["param"]) == (code, param), body
    assert body["instance"] == response.headers["x-request-id"]
    assert {"type", "title", "detail", "errors", "retryable"} <= body.keys()
    assert body["errors"] and all({"code", "param", "detail"} <= error.keys() for error in body["errors"])
    return body
