"""Text that no database holds, numbers that no column holds, bodies without end: each route's every field refuses them.

Generated from the OpenAPI document, on both databases: what is added to the API is tried without being named here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from httpx import Response
from starlette.testclient import TestClient

from api.app import create_app
from api.http.intake import MAX_DEPTH, MAX_VALUES
from store.settings import Settings
from tests.api.conftest import Row, check_problem, upload
from tests.schema_walk import unbounded

DOCUMENT = create_app(Settings(database_url="postgresql://nobody@127.0.0.1:1/none")).openapi()
NO_TEXT_IN_URLS = ("a%00b", "%ED%A0%80", "%ff")
NO_TEXT = ("a\x00b", "a\ud800b", "\udfff")
ODD_IN_URLS = (
    "",
    "-1",
    "0",
    "1" * 400,
    "1e400",
    "NaN",
    "true",
    "a" * 5000,
    "%F0%9F%99%82",
    "..%2F..",
    "%27%22;--",
    "[]",
)
ODD: tuple[Any, ...] = (None, True, -1, 10**400, float("inf"), "", "a" * 5000, "🙂'\"%;--", [], {}, [[]] * 3, {"a": {}})


def operations() -> Iterator[tuple[str, str, Row]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


@pytest.fixture
def client(make_settings: Callable[..., Settings], database_url: str) -> Iterator[TestClient]:
    """On SQLite and on PostgreSQL."""
    with TestClient(create_app(make_settings(database_url=database_url)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def ids(client: TestClient, spec: Row) -> dict[str, str]:
    """What is there, by the names of path parameters; of the others some text."""
    job = client.post("/v1/jobs", json=spec)
    assert job.status_code == 201, job.text
    return {"job_id": job.json()["id"], "file_id": spec["dataset"]["file"]}


def url(path: str, ids: dict[str, str], **given: str) -> str:
    for name in [part[1:-1] for part in path.split("/") if part.startswith("{")]:
        path = path.replace(f"{{{name}}}", given.get(name) or ids.get(name, "1"))
    return path


def bodies(operation: Row) -> Iterator[Any]:
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        if kind == "application/json":
            examples = [example["value"] for example in content["examples"].values()]
            yield max(examples, key=lambda example: len(json.dumps(example)))


def places(body: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inside = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for name, value in inside:
        yield (*place, name)
        yield from places(value, (*place, name))


def replaced(body: Any, place: tuple[str | int, ...], value: Any) -> Any:
    result = copy.deepcopy(body)
    here = result
    for name in place[:-1]:
        here = here[name]
    here[place[-1]] = value
    return result


def send(client: TestClient, method: str, path: str, body: Any) -> Response:
    headers = {"Content-Type": "application/json", "If-Match": "*"}
    return client.request(method, path, content=json.dumps(body), headers=headers)


def check_refused_or_done(response: Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert len(response.content) < 100_000


def test_nothing_that_comes_in_is_unbounded() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    found = []
    for method, path, operation in operations():
        inputs = [parameter["schema"] for parameter in operation.get("parameters", ())]
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            if kind == "application/json":
                inputs.append(content["schema"])
            else:  # a form, of which the parts are known
                inputs += schemas[content["schema"]["$ref"].rpartition("/")[2]]["properties"].values()
        for schema in inputs:
            found += [f"{method} {path}: {place}" for place in unbounded(schema, schemas)]
    # What a fork changes is held against the whole job's schema once it is merged.
    assert [place for place in found if not place.startswith("POST /v1/jobs/{job_id}/fork: overrides/*")] == []


def test_parameters_that_no_database_holds(client: TestClient, ids: dict[str, str]) -> None:
    for method, path, operation in operations():
        for parameter in operation.get("parameters", ()):
            name, where = parameter["name"], parameter["in"]
            for text in NO_TEXT_IN_URLS:
                if where == "path":
                    response = client.request(method, url(path, ids, **{name: text}))
                elif where == "query":
                    key = f"{name}[a]" if parameter.get("style") == "deepObject" else name
                    response = client.request(method, f"{url(path, ids)}?{quote(key)}={text}")
                elif text == "a%00b":
                    response = client.request(method, url(path, ids), headers={name: b"a\x00b"})
                else:
                    continue
                check_problem(response, 422, response.json()["code"], response.json()["param"])
                assert response.json()["param"].lower().startswith(name.lower()), response.text
                if where == "query":
                    response = client.request(method, f"{url(path, ids)}?a{text}=1")
                    check_problem(response, 422, "invalid_value", response.json()["param"])


def test_bodies_that_no_database_holds(client: TestClient, ids: dict[str, str]) -> None:
    for method, path, operation in operations():
        for body in bodies(operation):
            for place in places(body):
                pointer = "".join(f"/{name}" for name in place)
                response = send(client, method, url(path, ids), replaced(body, place, NO_TEXT[len(place) % 3]))
                check_problem(response, 422, "invalid_value", pointer)
                inside = replaced(body, place, {NO_TEXT[1]: 1})
                check_problem(
                    send(client, method, url(path, ids), inside), 422, "invalid_value", f"{pointer}/a\\ud800b"
                )


def test_odd_parameters(client: TestClient, ids: dict[str, str]) -> None:
    for method, path, operation in operations():
        for parameter in operation.get("parameters", ()):
            name, where = parameter["name"], parameter["in"]
            for text in ODD_IN_URLS:
                if where == "path":
                    response = client.request(method, url(path, ids, **{name: text}))
                elif where == "query":
                    key = f"{name}[{text}]" if parameter.get("style") == "deepObject" else name
                    response = client.request(method, f"{url(path, ids)}?{quote(key)}={text}")
                else:
                    response = client.request(method, url(path, ids), headers={name: text})
                check_refused_or_done(response)


def test_odd_bodies(client: TestClient, ids: dict[str, str]) -> None:
    for method, path, operation in operations():
        for body in bodies(operation):
            for place in places(body):
                for value in ODD:
                    check_refused_or_done(send(client, method, url(path, ids), replaced(body, place, value)))


def test_odd_headers(client: TestClient, ids: dict[str, str]) -> None:
    """Also those that no operation declares."""
    names = ("Range", "If-Range", "If-None-Match", "Accept", "Authorization", "Origin", "Host", "X-Request-Id")
    names += ("Content-Type", "Content-Length", "Last-Event-ID", "Sec-Fetch-Site")
    odd = (
        b"",
        b"\xff",
        b"\xb2",
        b"1" * 5000,
        b"bytes=0-" + b"1" * 5000,
        b"a;q=" + b"9" * 5000,
        b"http://[::1",
        b"a:b:c",
    )
    odd += (b"multipart/form-data; boundary=\xff", b"application/json; charset=\xff", b"Bearer \xff", b"a\x00b")
    for path in ("/v1/jobs", f"/v1/files/{ids['file_id']}/content", f"/v1/jobs/{ids['job_id']}/events", "/healthz"):
        for name in names:
            for value in odd:
                check_refused_or_done(client.get(path, headers={name: value}))
                if path == "/v1/jobs":
                    check_refused_or_done(client.post(path, headers={name: value}, content=b"{}"))


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def test_forks_nested_without_end(client: TestClient, ids: dict[str, str]) -> None:
    for depth in (MAX_DEPTH, 500, 50_000):
        content = '{"overrides": {"training": ' + '{"a":' * depth + "1" + "}" * depth + "}}"
        response = client.post(
            f"/v1/jobs/{ids['job_id']}/fork", content=content, headers={"Content-Type": "application/json"}
        )
        assert response.status_code in (400, 422), response.text
        assert response.headers["content-type"] == "application/problem+json"
    body = check_problem(
        client.post(f"/v1/jobs/{ids['job_id']}/fork", json={"overrides": {"training": nested(500)}}),
        422,
        "too_deep",
        "/overrides",
    )
    assert str(MAX_DEPTH) in body["detail"]


def test_forms(client: TestClient) -> None:
    check_problem(upload(client, purpose="data\x00set"), 422, "invalid_value", "/purpose")
    files = {"file": ("a\x00.jsonl", b'{"prompt": "a", "response": "b"}\n')}
    response = client.post("/v1/files", files=files)
    assert response.status_code in (201, 422), response.text
    content = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\\ud800"\r\n\r\n{}\r\n'
        b'--b\r\nContent-Disposition: form-data; name="purpose\\ud800"\r\n\r\ndataset\r\n--b--\r\n'
    )
    for charset in ("unicode_escape", "utf-16", "idna", "rot13"):
        kind = f"multipart/form-data; boundary=b; charset={charset}"
        check_refused_or_done(client.post("/v1/files", content=content, headers={"Content-Type": kind}))


class TestManyFaults:
    def test_fifty_are_told(self, app: FastAPI, spec: Row) -> None:
        with TestClient(app, raise_server_exceptions=False) as client:
            body = check_problem(
                client.post("/v1/jobs", json={**spec, **{f"f{n}": 1 for n in range(1000)}}), 422, "unknown_field", "/f0"
            )
        assert len(body["errors"]) == 50
        assert "(49 more in errors, and 950 more)" in body["detail"]

    def test_a_body_of_faults_alone(self, client: TestClient) -> None:
        for body in ({f"f{n}": 1 for n in range(MAX_VALUES + 1)}, {"metadata": [1] * 100_000}, [0] * 300_000):
            response = send(client, "POST", "/v1/jobs", body)
            check_problem(response, 422, "too_many_values", response.json()["param"])
            assert len(response.content) < 1000

    def test_a_name_without_end(self, client: TestClient, spec: Row) -> None:
        response = send(client, "POST", "/v1/jobs", {**spec, "a" * 800_000: 1})
        assert len(check_problem(response, 422, "invalid_value", "/" + "a" * 200)) and len(response.content) < 2000

    def test_a_value_without_end(self, client: TestClient, spec: Row) -> None:
        response = send(client, "POST", "/v1/jobs", {**spec, "method": {"type": "a" * 800_000}})
        check_problem(response, 422, "unknown_method", "/method/type")
        assert len(response.content) < 10_000

    def test_parameters_without_end(self, client: TestClient) -> None:
        response = client.get("/v1/jobs?" + "&".join(f"a{n}" for n in range(5000)))
        body = check_problem(response, 422, "unknown_parameter", "a0")
        assert len(body["errors"]) == 50
