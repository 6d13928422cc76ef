"""The service and its client as they are installed: what is tested, what is declared, what a wheel carries."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from itertools import chain
from pathlib import Path
from typing import Any

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.compose import ROOT

ROOMS = ("api", "store", "worker", "minillm_core", "migrations")
CLIENT = ROOT / "client"
WITHOUT_TRAINER = ("api", "store", "worker", "migrations")


def project(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return table


SERVICE_PROJECT, CLIENT_PROJECT = project(ROOT), project(CLIENT)
EXTRAS: dict[str, list[str]] = SERVICE_PROJECT["optional-dependencies"]

TESTED = {
    canonicalize_name(requirement.name): str(next(iter(requirement.specifier)).version)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}


def names(*groups: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for group in groups for line in group}


class TestVersions:
    @pytest.mark.parametrize(
        "line",
        sorted({*SERVICE_PROJECT["dependencies"], *CLIENT_PROJECT["dependencies"], *chain(*EXTRAS.values())}),
    )
    def test_the_tested_version_is_within_the_range_for_users(self, line: str) -> None:
        requirement = Requirement(line)
        tested = TESTED[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(tested), f"{requirement} does not allow the tested {tested}"

    def test_tested_versions_belong_to_no_machine(self) -> None:
        assert not [name for name, version in TESTED.items() if "+" in version]


class TestImports:
    @pytest.mark.parametrize(
        ("folder", "groups"),
        [
            ("api", [SERVICE_PROJECT["dependencies"]]),
            ("store", [SERVICE_PROJECT["dependencies"], EXTRAS["postgres"]]),
            ("migrations", [SERVICE_PROJECT["dependencies"]]),
            ("worker", [SERVICE_PROJECT["dependencies"], EXTRAS["worker"], EXTRAS["demo"]]),
            ("minillm_core", [SERVICE_PROJECT["dependencies"], EXTRAS["trainer"]]),
            ("client/minillm", [CLIENT_PROJECT["dependencies"]]),
        ],
    )
    def test_every_package_imported_is_declared(self, folder: str, groups: list[list[str]]) -> None:
        declared = names(*groups)
        owners = packages_distributions()
        missing = {
            f"{module} in {path.relative_to(ROOT)}"
            for path in (ROOT / folder).rglob("*.py")
            for module in _imported(path)
            if module in owners and module not in (*ROOMS, "minillm")
            if not any(canonicalize_name(owner) in declared for owner in owners[module])
        }
        assert not missing

    def test_the_api_reaches_nothing_of_the_trainers(self) -> None:
        """Over every chain of imports, those inside of functions as well."""
        graph = grimp.build_graph(
            "api", "store", "worker", "migrations", "minillm_core", include_external_packages=True
        )
        reached = {
            module.partition(".")[0]
            for room in WITHOUT_TRAINER
            for module in graph.find_upstream_modules(room, as_package=True)
        }
        assert {"pydantic", "sqlalchemy", "fastapi"} <= reached, "the walk is blind"
        trainer = names(EXTRAS["trainer"]) - names(SERVICE_PROJECT["dependencies"])
        owners = packages_distributions()
        assert not {
            module for module in reached for owner in owners.get(module, ()) if canonicalize_name(owner) in trainer
        }

    def test_the_service_without_a_trainer_needs_only_what_is_declared(self, tmp_path: Path) -> None:
        """Everything but the trainer is imported, and the API made, where nothing else is installed."""
        lines = [*SERVICE_PROJECT["dependencies"], *EXTRAS["worker"], *EXTRAS["postgres"]]
        program = (
            "import importlib, pkgutil, sys\n"
            f"sys.modules.update(dict.fromkeys({not_brought_by(lines)!r}))\n"
            "for room in ('api', 'store', 'worker', 'migrations'):\n"
            "    paths = [room] if room == 'migrations' else importlib.import_module(room).__path__\n"
            "    for module in pkgutil.walk_packages(paths, f'{room}.'):\n"
            "        if not module.name.endswith(('__main__', '.env')):\n"
            "            importlib.import_module(module.name)\n"
            "import psycopg\n"
            "from api.app import create_app\n"
            "from store.settings import Settings\n"
            f"settings = Settings(data_dir={str(tmp_path)!r})\n"
            "create_app(settings)\n"
            "importlib.import_module('kombu.transport.redis')\n"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=100, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()


def not_brought_by(lines: Iterable[str]) -> tuple[str, ...]:
    """Modules installed here that neither these requirements nor what they require bring."""
    brought = {"pip"}
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if {f"{name}[{extra}]" for extra in extras} <= brought:
            continue
        brought |= {name, *(f"{name}[{extra}]" for extra in extras)}
        with contextlib.suppress(PackageNotFoundError):  # of another platform
            for inner in map(Requirement, requires(requirement.name) or ()):
                if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                    waiting.append(inner)
    owners = packages_distributions()
    return tuple(
        sorted(
            module
            for module, found in owners.items()
            if module not in (*ROOMS, "minillm") and not any(canonicalize_name(owner) in brought for owner in found)
        )
    )


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def build(source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "-w", str(folder), str(source)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the service built from a copy, so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source / name)
    return build(source, folder)


@pytest.fixture(scope="module")
def client_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's wheel, unpacked."""
    folder = tmp_path_factory.mktemp("client")
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(CLIENT, folder / "source", ignore=ignored)
    with zipfile.ZipFile(build(folder / "source", folder)) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


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


class TestClientAlone:
    def test_carries_every_module_and_nothing_else(self, client_folder: Path) -> None:
        found = {path.relative_to(client_folder).as_posix() for path in client_folder.rglob("*") if path.is_file()}
        package = {name for name in found if not name.startswith("minillm_client-")}
        wanted = {path.relative_to(CLIENT).as_posix() for path in (CLIENT / "minillm").rglob("*.py")}
        assert package == wanted | {"minillm/py.typed"}
        assert [name for name in found if name.endswith("/LICENSE")]

    def test_needs_nothing_of_the_service(self, client_folder: Path, tmp_path: Path) -> None:
        """Everything in it can be imported, and `up` says what is missing, where only its own dependencies are."""
        absent = (*ROOMS, *not_brought_by(CLIENT_PROJECT["dependencies"]))
        assert {"torch", "sqlalchemy", "celery", "fastapi"} < set(absent)
        program = (
            "import importlib, pkgutil, sys\n"
            f"sys.modules.update(dict.fromkeys({absent!r}))\n"
            "import minillm\n"
            "assert minillm.Client\n"
            "for module in pkgutil.walk_packages(minillm.__path__, 'minillm.'):\n"
            "    if not module.name.endswith('__main__'):\n"
            "        importlib.import_module(module.name)\n"
            "sys.argv = ['minillm', *sys.argv[1:]]\n"
            "minillm.cli.app()\n"
        )

        def command(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-P", "-c", program, *arguments],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(client_folder)},
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )

        said = command("--version")
        assert (said.returncode, said.stdout) == (0, f"minillm {said.stdout.split()[-1]}\n"), said.stderr
        for arguments in (("up", "--data-dir", "data"), ("demo", "--data-dir", "data"), ("chat", ".")):
            (tmp_path / "config.json").touch()
            said = command(*arguments)
            assert said.returncode == 1
            assert re.fullmatch(r"error: `minillm \w+` needs .* pip install .*\n", said.stderr), said.stderr
        assert not (tmp_path / "data").exists()
