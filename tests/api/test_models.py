from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.models.safety import code_fields
from store.settings import Settings
from tests.api.conftest import check_problem
from tests.api.model_folders import write_model


def test_list(client: TestClient) -> None:
    models = {model["reference"]: model for model in client.get("/v1/models?limit=100").json()["data"]}
    assert {"path:teacher", "path:student", "path:foreign", "path:classifier"} <= models.keys()
    assert "path:not-a-model" not in models and "path:adapter" not in models
    teacher, student = models["path:teacher"], models["path:student"]
    assert (teacher["layers"], teacher["context_length"], teacher["causal_lm"]) == (4, 512, True)
    assert student["parameters"] < teacher["parameters"]
    assert teacher["tokenizer_fingerprint"] == student["tokenizer_fingerprint"]
    assert teacher["tokenizer_fingerprint"] != models["path:foreign"]["tokenizer_fingerprint"]
    assert models["path:classifier"]["causal_lm"] is False


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


def test_links_out_of_the_root_are_no_models(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    write_model(tmp_path, "outside")
    (root / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    with TestClient(create_app(make_settings(models_root=root))) as client:
        assert client.get("/v1/models").json()["data"] == []


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"auto_map": {"AutoConfig": "x.Y"}}, True),
        ({"text_config": {"auto_map": {"AutoConfig": "x.Y"}}}, True),
        ({"trust_remote_code": True}, True),
        ({"_attn_implementation_internal": "owner/kernel"}, True),
        ({"attn_implementation": {"text_config": "owner/kernel:run"}}, True),
        ({"custom_pipelines": {"x": {"impl": "y.Z"}}}, True),
        ({"auto_map": None, "trust_remote_code": False}, False),
        ({"_attn_implementation": "sdpa", "_attn_implementation_autoset": True}, False),
    ],
)
def test_fields_that_load_code(tmp_path: Path, config: dict[str, object], refused: bool) -> None:
    folder = write_model(tmp_path, "model", **config)
    assert bool(code_fields(folder)) is refused


def test_other_files_are_looked_at_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["a.B", null]}}')
    (folder / "generation_config.json").write_text("{")
    assert code_fields(folder) == ["generation_config.json: not JSON", "tokenizer_config.json: auto_map"]
