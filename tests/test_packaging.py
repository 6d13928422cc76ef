"""What is installed is what was tested, and what is imported is declared."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("api", "store", "worker", "minillm_core", "client", "migrations")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

TESTED = {
    canonicalize_name(requirement.name): str(next(iter(requirement.specifier)).version)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}


def declared() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for group in (PROJECT["dependencies"], *extras) for line in group]


class TestVersions:
    @pytest.mark.parametrize("requirement", declared(), ids=str)
    def test_the_tested_version_is_within_the_range_for_users(self, requirement: Requirement) -> None:
        tested = TESTED[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(tested), f"{requirement} does not allow the tested {tested}"

    def test_tested_versions_belong_to_no_machine(self) -> None:
        assert not [name for name, version in TESTED.items() if "+" in version]


class TestImports:
    def test_every_package_imported_is_declared(self) -> None:
        names = {canonicalize_name(requirement.name) for requirement in declared()}
        owners = packages_distributions()
        missing = {
            f"{module} in {path.relative_to(ROOT)}"
            for room in ROOMS
            for path in (ROOT / room).rglob("*.py")
            for module in _imported(path)
            if module in owners and module not in ROOMS
            if not any(canonicalize_name(owner) in names for owner in owners[module])
        }
        assert not missing


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "-w", str(folder), str(source)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


class TestWheel:
    def test_carries_every_module_and_nothing_else(self, wheel: Path) -> None:
        found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        wanted = {
            path.relative_to(ROOT).as_posix()
            for room in ROOMS
            for path in (ROOT / room).rglob("*")
            if path.suffix in {".py", ".mako", ".cpp", ".h"}  # the kernels are compiled where the trainer runs
        }
        assert wanted <= found
        assert {name.partition("/")[0] for name in found} == set(ROOMS)

    def test_brings_a_database_to_its_schema_without_the_checkout(self, wheel: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "installed")
        database = tmp_path / "fresh.db"
        done = subprocess.run(
            [sys.executable, "-P", "-m", "migrations"],
            cwd=tmp_path,
            env={
                "PYTHONPATH": str(tmp_path / "installed"),
                "MINILLM_DATABASE_URL": f"sqlite:///{database}",
                "MINILLM_DATA_DIR": str(tmp_path / "data"),
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert database.exists()
        newest = max((ROOT / "migrations" / "versions").glob("[0-9]*.py")).name
        assert re.search(rf"\b{newest.partition('_')[0]}\b", done.stdout), done.stdout
