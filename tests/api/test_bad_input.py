"""What bad input gets, through HTTP: a problem that names the field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from store.settings import Settings
from tests.api.conftest import Row, check_problem, jsonl, upload


def changed(spec: Row, path: str, value: Any) -> Row:
    """The spec with the field at a dotted path replaced."""
    result = copy.deepcopy(spec)
    *parents, last = path.split(".")
    here = result
    for name in parents:
        here = here.setdefault(name, {})
    here[last] = value
    return result


CASES = {
    "unknown field": ("trainings", {}, "unknown_field", "/trainings"),
    "unknown nested field": ("training.learning_rat", 1e-5, "unknown_field", "/training/learning_rat"),
    "unknown method": ("method", {"type": "magic"}, "unknown_method", "/method/type"),
    "field of another method": ("method", {"type": "sft", "gamma": 1}, "unknown_field", "/method/gamma"),
    "unregistered teacher": ("teacher.model", "path:nowhere", "model_not_found", "/teacher/model"),
    "unregistered student": ("student.model", "path:nowhere", "model_not_found", "/student/model"),
    "unknown made model": ("teacher.model", "model_0123456789", "model_not_found", "/teacher/model"),
    "no model reference": ("teacher.model", "gpt2", "invalid_value", "/teacher/model"),
    "model out of the root": ("teacher.model", "path:../teacher", "model_not_found", "/teacher/model"),
    "absolute model": ("teacher.model", "path:/etc", "model_not_found", "/teacher/model"),
    "not a causal LM": ("teacher.model", "path:classifier", "not_a_causal_lm", "/teacher/model"),
    "model with code": ("teacher.model", "path:coded", "unsupported_model", "/teacher/model"),
    "student larger": ("student.model", "path:large", "student_larger_than_teacher", "/student/model"),
    "tokenizer mismatch": ("student.model", "path:foreign", "tokenizer_mismatch", "/student/model"),
    "too many layers": (
        "student", {"prune_teacher": {"layers": 5}}, "too_many_layers", "/student/prune_teacher/layers"),
    "layer out of range": (
        "student", {"prune_teacher": {"layers": [0, 4]}}, "too_many_layers", "/student/prune_teacher/layers"),
    "no layers": ("student", {"prune_teacher": {"layers": []}}, "invalid_value", "/student/prune_teacher/layers"),
    "two students": (
        "student", {"model": "path:student", "prune_teacher": {"layers": 1}}, "invalid_value", "/student"),
    "unknown adapter": ("teacher.adapter", "path:nowhere", "model_not_found", "/teacher/adapter"),
    "unknown file": ("dataset.file", "file_0123456789", "file_not_found", "/dataset/file"),
    "file of the server": ("dataset.file", "path:/etc/passwd", "invalid_value", "/dataset/file"),
    "over the teacher's context": ("training.max_new_tokens", 481, "context_too_short", "/training/max_new_tokens"),
    "negative learning rate": ("training.learning_rate", -1e-5, "invalid_value", "/training/learning_rate"),
    "infinite learning rate": ("training.learning_rate", "Infinity", "invalid_value", "/training/learning_rate"),
    "rows that do not divide": ("training.rows_per_step", 3, "invalid_value", "/method/rollouts_per_round"),
    "top_p in training": ("method.top_p", 0.9, "invalid_value", "/method/top_p"),
    "a clip below zero": ("method.reward_clip", -1, "invalid_value", "/method/reward_clip"),
    "top_k in training": ("method.top_k", 50, "invalid_value", "/method/top_k"),
    "missing teacher": ("teacher", None, "invalid_value", "/teacher"),
    "state from outside": ("state", "succeeded", "unknown_field", "/state"),
    "owner from outside": ("owner_id", "other", "unknown_field", "/owner_id"),
    "too much metadata": ("metadata", {str(n): "x" for n in range(17)}, "invalid_value", "/metadata"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("dry_run", [False, True], ids=["real", "dry"])
def test_refused(client: TestClient, spec: Row, name: str, dry_run: bool) -> None:
    path, value, code, param = CASES[name]
    response = client.post("/v1/jobs", json=changed(spec, path, value), params={"dry_run": dry_run})
    check_problem(response, 422, code, param)
    assert client.get("/v1/jobs").json()["data"] == []


def test_the_smaller_context_counts(client: TestClient, spec: Row) -> None:
    short = changed(changed(spec, "student.model", "path:short"), "training.max_new_tokens", 33)
    body = check_problem(client.post("/v1/jobs", json=short), 422, "context_too_short", "/training/max_new_tokens")
    assert "65 together" in body["detail"] and "student's context is 64" in body["detail"]
    assert client.post("/v1/jobs", json=changed(short, "training.max_new_tokens", 32)).status_code == 201


@pytest.mark.parametrize("method", [{"type": "kd"}, {"type": "minillm", "rollouts_per_round": 4, "lm_coef": 0}])
def test_a_corpus_that_nothing_trains_on(client: TestClient, spec: Row, method: Row) -> None:
    unused = {**spec, "method": method, "pretrain_corpus": {"file": "file_00"}}
    body = check_problem(client.post("/v1/jobs", json=unused), 422, "invalid_value", "/pretrain_corpus/file")
    assert "would not be used" in body["detail"]


def test_every_fault_is_named_at_once(client: TestClient, spec: Row) -> None:
    bad = changed(changed(spec, "dataset.file", "file_00"), "student.model", "path:foreign")
    body = client.post("/v1/jobs", json=bad).json()
    assert {error["code"] for error in body["errors"]} == {"tokenizer_mismatch", "file_not_found"}


def test_as_many_layers_as_the_teacher_has(client: TestClient, spec: Row) -> None:
    for layers in (4, 1, [3], [0, 1, 2, 3]):
        response = client.post("/v1/jobs", json={**spec, "student": {"prune_teacher": {"layers": layers}}})
        assert response.status_code == 201, response.text


def test_adapter_folder(
    client: TestClient, spec: Row, make_settings: Callable[..., Settings], own_models: Path
) -> None:
    with_adapter = changed(spec, "teacher.adapter", "path:adapter")
    assert client.post("/v1/jobs", json=with_adapter).status_code == 201
    (own_models / "adapter" / "adapter_config.json").write_text(json.dumps({"auto_map": {"x": "y.Z"}}))
    with TestClient(create_app(make_settings(models_root=own_models))) as other:
        check_problem(other.post("/v1/jobs", json=with_adapter), 422, "unsupported_model", "/teacher/adapter")


def test_hub_models_only_where_enabled(client: TestClient, spec: Row, make_settings: Callable[..., Settings]) -> None:
    hub = changed(changed(spec, "teacher.model", "hub:org/teacher"), "student.model", "hub:org/student")
    assert client.post("/v1/jobs", json=hub).status_code == 201
    with TestClient(create_app(make_settings(hub_enabled=False))) as closed:
        body = check_problem(closed.post("/v1/jobs", json=hub), 422, "hub_disabled", "/teacher/model")
    assert [error["param"] for error in body["errors"]] == ["/teacher/model", "/student/model"]


def test_a_row_at_fault_is_named_by_its_line(client: TestClient) -> None:
    content = jsonl({"prompt": "a", "response": "b"}, {"prompt": "a"})
    body = check_problem(upload(client, content), 422, "dataset_invalid", "/file")
    assert body["line"] == 2 and body["detail"].startswith("Line 2:") and "needed keys" in body["detail"]
    body = check_problem(upload(client, b""), 422, "dataset_invalid", "/file")
    assert body["line"] is None and "no rows" in body["detail"]
    assert client.get("/v1/files").json()["data"] == []


def test_what_an_upload_may_look_like(client: TestClient) -> None:
    row = jsonl({"instruction": "a", "input": None, "output": "é🙂", "category": 7})
    response = upload(client, b"\xef\xbb\xbf" + row + b"\r\n\n" + row.rstrip())
    assert response.status_code == 201, response.text
    assert response.json()["lines"] == 2


def test_a_file_for_another_purpose_is_read_again(client: TestClient, spec: Row) -> None:
    corpus = upload(client, jsonl({"text": "the cat"}, {"text": "runs"}), purpose="corpus").json()
    response = client.post("/v1/jobs", json=changed(spec, "dataset.file", corpus["id"]))
    body = check_problem(response, 422, "dataset_invalid", "/dataset/file")
    assert body["line"] == 1 and "needed keys" in body["detail"]
    assert client.post("/v1/jobs", json={**spec, "pretrain_corpus": {"file": corpus["id"]}}).status_code == 201
    wrong = {**spec, "pretrain_corpus": {"file": spec["dataset"]["file"]}}
    check_problem(client.post("/v1/jobs", json=wrong), 422, "dataset_invalid", "/pretrain_corpus/file")
    wrong = changed(spec, "evaluation.calibration_file", corpus["id"])
    check_problem(client.post("/v1/jobs", json=wrong), 422, "dataset_invalid", "/evaluation/calibration_file")


def test_one_row_cannot_be_split(client: TestClient, spec: Row) -> None:
    one = upload(client, jsonl({"prompt": "a", "response": "b"})).json()
    body = check_problem(
        client.post("/v1/jobs", json=changed(spec, "dataset.file", one["id"])), 422, "dataset_invalid", "/dataset/file"
    )
    assert "at least two" in body["detail"]


class TestTooLarge:
    def test_declared(self, client: TestClient) -> None:
        check_problem(upload(client, b"x" * 300_000), 413, "file_too_large", "/file")

    def test_counted_while_received(self, client: TestClient) -> None:
        sent = 0

        def chunks() -> Any:
            nonlocal sent
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(10_000):
                sent += 10_000
                yield b"x" * 10_000

        response = client.post(
            "/v1/files", content=chunks(), headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
        check_problem(response, 413, "file_too_large", "/file")

    def test_the_file_itself_within_the_allowance_of_the_form(self, client: TestClient) -> None:
        rows = jsonl({"prompt": "a" * 100_000, "response": "b"})
        check_problem(upload(client, rows), 413, "file_too_large", "/file")

    def test_a_body_of_json(self, client: TestClient, spec: Row) -> None:
        response = client.post("/v1/jobs", json={**spec, "name": "x" * 2_000_000})
        check_problem(response, 413, "request_too_large")

    def test_nothing_is_kept(self, client: TestClient, settings: Settings) -> None:
        upload(client, b"x" * 300_000)
        upload(client, jsonl({"prompt": "a" * 100_000, "response": "b"}))
        assert not settings.files_dir.exists() or list(settings.files_dir.iterdir()) == []


class TestBodies:
    def test_no_json(self, client: TestClient) -> None:
        response = client.post("/v1/jobs", content=b"{", headers={"Content-Type": "application/json"})
        check_problem(response, 400, "invalid_json")

    @pytest.mark.parametrize("given", ["text/plain", "application/x-www-form-urlencoded", None])
    def test_another_content_type(self, client: TestClient, spec: Row, given: str | None) -> None:
        headers = {"Content-Type": given} if given else {}
        body = check_problem(
            client.post("/v1/jobs", content=json.dumps(spec), headers=headers), 415, "unsupported_media_type"
        )
        assert "send Content-Type: application/json" in body["detail"]
        assert (given or "has no Content-Type") in body["detail"]

    def test_json_where_a_form_is_read(self, client: TestClient) -> None:
        body = check_problem(client.post("/v1/files", json={}), 415, "unsupported_media_type")
        assert "multipart" in body["detail"] and "application/json" in body["detail"]

    def test_deep_json(self, client: TestClient) -> None:
        deep = '{"name":' * 50_000 + "1" + "}" * 50_000
        response = client.post("/v1/jobs", content=deep, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422)
        assert response.headers["content-type"] == "application/problem+json"

    def test_no_body(self, client: TestClient) -> None:
        check_problem(client.post("/v1/jobs"), 422, "missing_field", "")

    def test_no_file_in_the_form(self, client: TestClient) -> None:
        check_problem(client.post("/v1/files", files={"purpose": (None, "dataset")}), 422, "missing_field", "/file")

    def test_a_form_that_can_hold_no_file(self, client: TestClient) -> None:
        check_problem(client.post("/v1/files", data={"purpose": "dataset"}), 415, "unsupported_media_type")

    def test_text_in_place_of_the_file(self, client: TestClient) -> None:
        response = client.post("/v1/files", files={"file": (None, "not a file")})
        body = check_problem(response, 422, "invalid_value", "/file")
        assert "-F file=@rows.jsonl" in body["detail"]

    def test_unknown_field_of_the_form(self, client: TestClient) -> None:
        body = check_problem(upload(client, prupose="corpus"), 422, "unknown_field", "/prupose")
        assert "file, purpose" in body["detail"]

    def test_two_files_at_once(self, client: TestClient) -> None:
        row = jsonl({"prompt": "a", "response": "b"})
        files = [("file", ("one.jsonl", row)), ("file", ("two.jsonl", row))]
        check_problem(client.post("/v1/files", files=files), 422, "invalid_value", "/file")
        assert client.get("/v1/files").json()["data"] == []

    def test_unknown_purpose(self, client: TestClient) -> None:
        check_problem(upload(client, purpose="fun"), 422, "invalid_value", "/purpose")

    def test_no_disk(self, make_settings: Callable[..., Settings], spec: Row) -> None:
        with TestClient(create_app(make_settings(min_free_bytes=2**60))) as full:
            check_problem(upload(full), 507, "insufficient_storage")
            check_problem(full.post("/v1/jobs", json=spec), 507, "insufficient_storage")
            body = check_problem(full.get("/readyz"), 503, "not_ready")
            assert body["checks"]["disk"] != "ok"
