"""Every kind of job has a spec, and what an attempt of it must leave."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from minillm_core.spec import SPECS, parse_spec
from minillm_core.spec.versions import dump_spec, read_spec
from store.jobs.kinds import KINDS
from tests.store import scenes


def test_every_kind_has_both() -> None:
    assert KINDS.keys() == SPECS.keys()


def test_a_spec_is_that_of_its_kind() -> None:
    spec = scenes.make_spec()
    document = spec.model_dump(mode="json")
    assert parse_spec(document) == read_spec(dump_spec(spec)) == spec
    del document["kind"]
    assert parse_spec(document).kind == "distillation"
    for unknown in ("evaluation", 3, None, ["x"]):
        with pytest.raises(ValidationError) as caught:
            parse_spec({**document, "kind": unknown})
        assert [fault["loc"] for fault in caught.value.errors()] == [("kind",)]
