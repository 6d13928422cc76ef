"""What older releases stored is brought up to the present; what cannot be is shown as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from minillm_core.spec import JobSpec, Manifest
from minillm_core.spec.versions import SPEC, UnknownVersion, Versioned, dump_spec, read_spec, shown_spec

SPEC_1: dict[str, Any] = {
    "teacher": {"model": "path:teacher"},
    "student": {"model": "path:student"},
    "dataset": {"file": "file_0"},
    "method": {"type": "kd"},
}


def renamed(document: dict[str, Any]) -> dict[str, Any]:
    body = dict(document)
    body["new"] = body.pop("old")
    return body


def doubled(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "new": document["new"] * 2}


THREE = Versioned("thing", (renamed, doubled))


@pytest.mark.parametrize(
    ("stored", "present"),
    [
        ({"old": 2}, {"new": 4}),
        ({"thing_version": 1, "old": 2}, {"new": 4}),
        ({"thing_version": 2, "new": 2}, {"new": 4}),
        ({"thing_version": 3, "new": 2}, {"new": 2}),
    ],
)
def test_every_version_is_brought_up(stored: dict[str, Any], present: dict[str, Any]) -> None:
    assert THREE.present(stored) == THREE.shown(stored) == present
    assert THREE.present(THREE.stamped(present)) == present


@pytest.mark.parametrize("version", [4, 0, -1, "2", None, 10**30])
def test_a_version_that_is_not_known(version: Any) -> None:
    stored = {"thing_version": version, "new": 1}
    with pytest.raises(UnknownVersion, match="knows those up to 3"):
        THREE.present(stored)
    assert THREE.shown(stored) == stored


@pytest.mark.parametrize("stored", [{"neither": 1}, [], "text", None, 7])
def test_what_cannot_be_brought_up_is_shown(stored: Any) -> None:
    assert THREE.shown(stored) == stored


def test_specs() -> None:
    spec = JobSpec.model_validate(SPEC_1)
    text = dump_spec(spec)
    assert json.loads(text)["spec_version"] == SPEC.version
    assert read_spec(text) == read_spec(json.dumps(SPEC_1)) == spec
    assert shown_spec(text) == spec.model_dump(mode="json")
    with pytest.raises(UnknownVersion):
        read_spec(json.dumps({**SPEC_1, "spec_version": 99}))
    for bad in ("{", "[]", '{"teacher": 1}', "null"):
        with pytest.raises(ValidationError):
            read_spec(bad)
    assert shown_spec("{") == shown_spec("[]") == {}
    assert shown_spec("[" * 100_000) == {}


def test_manifests() -> None:
    file = {"name": "a", "bytes": 1, "sha256": "0" * 64}
    manifest = Manifest.model_validate({"kind": "student", "created_at": "2026-01-01T00:00:00Z", "files": [file]})
    assert Manifest.read(manifest.dumps()) == manifest
    newer = {"manifest_version": 9, "kind": "student", "created_at": "then", "files": [{**file, "mode": 7}, 1, {}]}
    with pytest.raises(UnknownVersion):
        Manifest.read(json.dumps(newer))
    assert [entry.name for entry in Manifest.shown(json.dumps(newer)).files] == ["a"]
    assert Manifest.shown("{").files == Manifest.shown("[]").files == []
