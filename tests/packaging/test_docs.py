"""The documents say what the code does: settings, endpoints, links."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from api.app import create_app
from minillm import Client
from minillm.cli import app
from minillm.specfile import local_files, read_spec, with_files
from minillm_core.spec import JobSpec
from store.jobs.transitions import TRANSITIONS
from store.jobs.vocabulary import JobState
from store.settings import Settings
from tests.packaging.compose import ROOT
from tests.packaging.settings_table import rows

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])


def test_the_table_of_settings_is_that_of_the_class() -> None:
    table = [line for line in (DOCS / "settings.md").read_text().splitlines() if line.startswith("|")]
    assert table == rows(), "make it anew: python -m tests.packaging.settings_table"


def test_every_endpoint_is_on_the_map(tmp_path: Path) -> None:
    paths = create_app(Settings(data_dir=tmp_path)).openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    documented = re.findall(r"^\| `([A-Z]+ /\S+)` \|", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert set(documented) == served
    assert len(documented) == len(served)


def test_every_command_is_on_its_page() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    there = set()
    for name, command in group.commands.items():
        there |= {f"{name} {inner}" for inner in command.commands} if isinstance(command, TyperGroup) else {name}
    documented = re.findall(r"^\| `minillm ([a-z]+(?: [a-z]+)?)", (DOCS / "cli.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(there)


def test_every_method_of_the_client_is_on_its_page() -> None:
    methods = {name for name in dir(Client) if not name.startswith("_")} - {"close", "base_url"}
    assert methods <= set(re.findall(r"`(\w+)`", (DOCS / "client.md").read_text()))


def test_the_picture_of_states_is_the_table_of_transitions() -> None:
    drawn = re.findall(r"^    (\w+) --> (\w+):", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    allowed = {(state, to) for (state, _), choices in TRANSITIONS.items() for to in choices if state is not None}
    assert {(str(state), str(to)) for state, to in allowed if to is not JobState.EXPIRED} == set(drawn)
    assert len(drawn) == len(set(drawn))


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([\w./-]+)\)", (DOCS / "README.md").read_text()))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"README.md"} | {"adr/"}


@pytest.mark.parametrize("name", ["api.md", "operations.md"])
def test_jobs_that_are_shown_are_jobs(name: str) -> None:
    blocks = re.findall(r"```json\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    shown = [job for job in map(json.loads, blocks) if "teacher" in job]
    assert shown
    for job in shown:
        JobSpec.model_validate(job)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_example_specs_are_jobs_whose_files_are_there(path: Path) -> None:
    spec = read_spec(path)
    files = local_files(spec, path.parent)
    assert files["dataset.file"].parent == path.parent
    JobSpec.model_validate(with_files(spec, dict.fromkeys(files, "file_0")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\((?!https?://)([^)#\s]+)(?:#[^)]*)?\)", text)
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_project_that_are_named_exist(page: Path) -> None:
    rooms = r"(?:api|store|worker|minillm_core|client|migrations|tests|benchmarks|examples|docs)"
    named = re.findall(rf"`({rooms}/[\w./-]+\.(?:py|md|ya?ml|jsonl))`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]
