import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from api.app import create_app
from api.models.catalogue import ModelCatalogue
from api.services import Services
from minillm_core.spec.model_folder import FAMILIES
from store.db.tables import Model
from store.models import ModelRepository
from store.settings import Settings
from tests.api.conftest import Row, check_problem
from tests.api.model_folders import write_model
from tests.api.runs import Run


def test_list(client: TestClient) -> None:
    models = {model["reference"]: model for model in client.get("/v1/models?limit=100").json()["data"]}
    teacher, student = models["path:teacher"], models["path:student"]
    assert (teacher["layers"], teacher["context_length"], teacher["causal_lm"]) == (4, 512, True)
    assert student["parameters"] < teacher["parameters"]
    assert teacher["tokenizer_fingerprint"] == student["tokenizer_fingerprint"]
    assert teacher["tokenizer_fingerprint"] != models["path:foreign"]["tokenizer_fingerprint"]
    assert {name for name, model in models.items() if not model["usable"]} == {
        "path:classifier",
        "path:coded",
        "path:not-a-model",
    }
    assert (teacher["usable"], teacher["problems"]) == (True, [])
    (problem,) = models["path:classifier"]["problems"]
    assert problem["code"] == "not_a_causal_lm" and "LlamaForSequenceClassification" in problem["detail"]
    adapters = client.get("/v1/models?kind=adapter").json()["data"]
    assert [model["reference"] for model in adapters] == ["path:adapter"]


def test_get_by_id_and_by_reference(client: TestClient) -> None:
    by_reference = client.get("/v1/models/path:teacher").json()
    assert client.get(f"/v1/models/{by_reference['id']}").json() == by_reference
    check_problem(client.get("/v1/models/path:nowhere"), 404, "not_found")


def test_folders_come_and_go(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    root = tmp_path / "models"
    with TestClient(create_app(make_settings(models_root=root))) as client:
        assert client.get("/v1/models").json()["data"] == []
        folder = write_model(root, "late")
        (model,) = client.get("/v1/models").json()["data"]
        assert model["reference"] == "path:late"
        folder.rename(tmp_path / "elsewhere")
        assert client.get("/v1/models").json()["data"] == []


BAD = {
    "merges": ("tokenizer.json", b'{"model": {"vocab": {}, "merges": 5}}', "model_unreadable"),
    "added tokens": ("tokenizer.json", b'{"model": {"vocab": {}}, "added_tokens": [1]}', "model_unreadable"),
    "shape": ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}garbage", "model_unreadable"),
    "surrogate": ("config.json", b'{"architectures": ["\\ud800"]}', "not_a_causal_lm"),
    "number": (
        "config.json",
        b'{"architectures": ["XForCausalLM"], "model_type": "llama", "vocab_size": 1e400}',
        "model_unreadable",
    ),
    "bytes": ("config.json", b"\xff\xfe\0", "model_unreadable"),
    "nul": ("config.json", b'{"architectures": ["\\u0000ForCausalLM"], "dtype": "\\u0000"}', "unsupported_model"),
}


def test_one_folder_never_stands_in_the_way_of_another(
    make_settings: Callable[..., Settings], tmp_path: Path, spec: Row
) -> None:
    root = tmp_path / "models"
    write_model(root, "teacher")
    write_model(root, "student", layers=2)
    for name, (file, content, _) in BAD.items():
        (write_model(root, name) / file).write_bytes(content)
    os.mkfifo(write_model(root, "pipe") / "chat_template.jinja")
    (root / "link").symlink_to(tmp_path / "outside")
    os.mkdir(os.fsencode(root) + b"/\xff")
    codes = {name: code for name, (_, _, code) in BAD.items()}
    expected = {**codes, "link": "linked_folder", "pipe": "model_unreadable"}
    with TestClient(create_app(make_settings(models_root=root)), raise_server_exceptions=False) as client:
        listed = {model["name"]: model for model in client.get("/v1/models?limit=100").json()["data"]}
        assert {name for name, model in listed.items() if model["usable"]} == {"teacher", "student"}
        assert client.post("/v1/jobs", json=spec).status_code == 201
        for name, code in expected.items():
            assert listed[name]["problems"][0]["code"] == code
            bad = {**spec, "teacher": {"model": f"path:{name}"}}
            body = check_problem(client.post("/v1/jobs", json=bad), 422, code, "/teacher/model")
            assert listed[name]["problems"][0]["detail"] in body["detail"]
            assert str(tmp_path) not in json.dumps(listed[name]) + json.dumps(body)
        (root / "shape" / "model.safetensors").write_bytes((root / "teacher" / "model.safetensors").read_bytes())
        assert client.get("/v1/models/path:shape").json()["usable"] is True


def test_many_at_once_see_what_was_there_when_they_asked(services: Services, own_models: Path) -> None:
    catalogue = ModelCatalogue(services.database, services.settings.model_copy(update={"models_root": own_models}))

    def look(number: int) -> bool:
        write_model(own_models, f"new-{number}", layers=1)
        catalogue.refresh()
        with services.database.read() as session:
            return ModelRepository(session).get("anyone", f"path:new-{number}").layers == 1

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(24)))


def test_a_model_where_an_adapter_belongs_and_the_other_way_round(client: TestClient, spec: Row) -> None:
    model = {**spec, "teacher": {"model": "path:teacher", "adapter": "path:student"}}
    check_problem(client.post("/v1/jobs", json=model), 422, "adapter_invalid", "/teacher/adapter")
    adapter = {**spec, "teacher": {"model": "path:adapter"}}
    check_problem(client.post("/v1/jobs", json=adapter), 422, "not_a_causal_lm", "/teacher/model")


def test_a_student_has_its_teachers_tokenizer(client: TestClient, services: Services, job: Row, spec: Row) -> None:
    """Also one whose row an older release wrote, and whose tokenizer.json is written in another way."""
    teacher = services.settings.models_dir / "teacher"
    files = {path.name: path.read_bytes() for path in teacher.iterdir()}
    written = json.loads(files["tokenizer.json"]) | {"truncation": None, "added_tokens": []}
    written["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]}
    run = Run(services, job["id"])
    run.train(1)
    run.succeed({**files, "tokenizer.json": json.dumps(written).encode()})
    name = client.get(f"/v1/jobs/{job['id']}").json()["student_model"]
    with services.database.write() as session:
        row = session.scalars(select(Model).where(Model.reference == name)).one()
        ModelRepository(session).set_fingerprint(row.id, "f" * 64)
    with TestClient(create_app(services.settings)) as client:  # the present release starts
        found = client.get(f"/v1/models/{name}").json()
        assert found["tokenizer_fingerprint"] == client.get("/v1/models/path:teacher").json()["tokenizer_fingerprint"]
        again = client.post("/v1/jobs", json={**spec, "student": {"model": name}})
        assert again.status_code == 201, again.json()
        foreign = client.post(
            "/v1/jobs", json={**spec, "teacher": {"model": "path:foreign"}, "student": {"model": name}}
        )
        assert "tokenizer_mismatch" in json.dumps(foreign.json())


class TestHub:
    """Models of the hub are judged as soon as they are on the machine."""

    @pytest.fixture
    def snapshot(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        home = tmp_path / "hub" / "models--org--model"
        commit = "0" * 40
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(commit)
        folder = write_model(home / "snapshots", commit)
        (home / "blobs").mkdir()
        for path in list(folder.iterdir()):
            path.rename(home / "blobs" / path.name)
            path.symlink_to(f"../../blobs/{path.name}")
        return folder

    def post(self, client: TestClient, spec: Row, **teacher: str) -> Any:
        return client.post("/v1/jobs", json={**spec, "teacher": {"model": "hub:org/model", **teacher}})

    def test_a_good_one_is_known(self, client: TestClient, spec: Row, snapshot: Path) -> None:
        assert self.post(client, spec).status_code == 201
        pruned = {**spec, "teacher": {"model": "hub:org/model"}, "student": {"prune_teacher": {"layers": 9}}}
        response = client.post("/v1/jobs", json=pruned)
        check_problem(response, 422, "too_many_layers", "/student/prune_teacher/layers")

    def test_what_the_trainer_would_refuse(self, client: TestClient, spec: Row, snapshot: Path) -> None:
        (snapshot.parents[1] / "blobs" / "config.json").write_text('{"architectures": ["BertModel"]}')
        for revision in ({}, {"revision": "main"}, {"revision": "0" * 40}):
            check_problem(self.post(client, spec, **revision), 422, "not_a_causal_lm", "/teacher/model")
        assert self.post(client, spec, revision="other").status_code == 201
        assert self.post(client, spec, revision="../refs/main").status_code == 201

    def test_what_a_download_has_not_brought_yet(self, client: TestClient, spec: Row, snapshot: Path) -> None:
        (snapshot / "model.safetensors").unlink()
        (snapshot / "tokenizer.json").unlink()
        assert self.post(client, spec).status_code == 201

    def test_a_link_out_of_the_cache(self, client: TestClient, spec: Row, snapshot: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("{}")
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(tmp_path / "secret")
        check_problem(self.post(client, spec), 422, "model_unreadable", "/teacher/model")


def test_the_trainers_answer_is_the_same_for_every_architecture(
    make_settings: Callable[..., Settings], tmp_path: Path, spec: Row
) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from minillm_core.errors import UserError
    from minillm_core.models.loading import resolve
    from minillm_core.spec import RunContext

    root = tmp_path / "models"
    write_model(root, "student", layers=2)
    source = write_model(tmp_path, "source")
    config = json.loads((source / "config.json").read_text())
    trainers: dict[str, str | None] = {}
    for model_type in CONFIG_MAPPING_NAMES:
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, f"{model_type}Model")
        folder = root / model_type
        folder.mkdir()
        for name in ("model.safetensors", "tokenizer.json"):
            (folder / name).hardlink_to(source / name)
        changes = {"model_type": model_type, "architectures": [architecture]}
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        try:
            resolve(f"path:{model_type}", None, RunContext(models={f"path:{model_type}": str(folder)}), tmp_path)
            trainers[model_type] = None
        except UserError as error:
            trainers[model_type] = error.code
    with TestClient(create_app(make_settings(models_root=root))) as client:
        client.get("/v1/models")
        with client.app.state.services.database.read() as session:  # type: ignore[attr-defined]
            rows = ModelRepository(session).list("anyone", limit=1000).items
    answers = {row.name: row.problems[0]["code"] if row.problems else None for row in rows if row.name != "student"}
    assert answers == trainers and len(answers) > 200
    assert set(answers.values()) == {None, "not_a_causal_lm", "unsupported_model"}
    assert {name for name, code in answers.items() if code is None} == set(FAMILIES)
