"""How programs begin: a setting at fault is named, and nothing that they write is for other users."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.db import schema
from store.db.database import Database
from store.program import EX_CONFIG, close_to_others
from store.settings import Settings, unknown_variables

ROOT = Path(__file__).parents[2]
PROGRAMS = ["api", "worker", "worker.services", "worker.embedded", "worker.health", "migrations"]


def run(module: str, tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MINILLM_")}
    environment = {**kept, "MINILLM_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
    )


class TestSettingsAtFault:
    @pytest.mark.parametrize("module", PROGRAMS)
    def test_no_program_starts(self, module: str, tmp_path: Path) -> None:
        ended = run(module, tmp_path, MINILLM_SECRT_KEY="x" * 32, MINILLM_API_KEY="the client's")
        assert (ended.returncode, ended.stdout) == (EX_CONFIG, "")
        assert ended.stderr.endswith("MINILLM_SECRT_KEY is not a setting: is it MINILLM_SECRET_KEY?\n"), ended.stderr
        assert not (tmp_path / "data").exists()

    def test_each_is_named(self, tmp_path: Path) -> None:
        ended = run("api", tmp_path, MINILLM_PORT="-1", MINILLM_LEASE_SECONDS="soon", MINILLM_LOG_LEVEL="LOUD")
        assert ended.returncode == EX_CONFIG
        for name in ("MINILLM_PORT", "MINILLM_LEASE_SECONDS", "MINILLM_LOG_LEVEL"):
            assert f"{name}: " in ended.stderr
        assert len(ended.stderr.splitlines()) == 1

    def test_an_option_of_the_command_line_too(self, tmp_path: Path) -> None:
        ended = run("worker.embedded", tmp_path, "--port", "70000")
        assert ended.returncode == EX_CONFIG and "MINILLM_PORT: " in ended.stderr


class TestUnknownVariables:
    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("MINILLM_BOOTSTRAP_APIKEY", "is it MINILLM_BOOTSTRAP_API_KEY?"),
            ("minillm_prot", "is it MINILLM_PORT?"),
            ("MINILLM_XYZZY", "see docs/settings.md"),
            ("MINILLM_LOG_LEVLE", "is it MINILLM_LOG_LEVEL?"),
            ("MINILLM_", "see docs/settings.md"),
        ],
    )
    def test_the_nearest_is_named(self, name: str, told: str) -> None:
        (line,) = unknown_variables(["PATH", name, "MINILLM_PORT"])
        assert line.startswith(f"{name} is not a setting") and line.endswith(told)

    def test_what_the_project_itself_reads_is_known(self) -> None:
        known = ["MINILLM_URL", "MINILLM_API_KEY", "MINILLM_ATTEMPT", "MINILLM_LIFELINE_FD", "minillm_port"]
        assert unknown_variables(known) == []


def modes(folder: Path) -> dict[str, int]:
    found = {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    return {".": stat.S_IMODE(folder.stat().st_mode), **found}


class TestModes:
    @pytest.fixture(autouse=True)
    def open_umask(self) -> Iterator[None]:
        before = os.umask(0)
        yield
        os.umask(before)

    def test_what_a_program_makes_is_its_users_alone(self, tmp_path: Path) -> None:
        assert run("migrations", tmp_path).returncode == 0
        made = modes(tmp_path / "data")
        assert "minillm.db" in made
        assert not [path for path, mode in made.items() if mode & 0o077]

    def test_what_was_left_open_is_closed(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path / "data", database_url=f"sqlite:///{tmp_path}/other.db")
        for folder in (settings.files_dir, settings.runs.root):
            folder.mkdir(parents=True)
        for name in ("other.db", "other.db-wal"):
            (tmp_path / name).touch()
        close_to_others(settings)
        assert set(modes(settings.data_dir).values()) == {0o700}
        assert modes(tmp_path)["other.db"] == modes(tmp_path)["other.db-wal"] == 0o600

    def test_a_folder_that_is_everybodys_is_left_alone(self, tmp_path: Path) -> None:
        shared = tmp_path / "tmp"
        shared.mkdir()
        shared.chmod(0o1777)
        close_to_others(Settings(data_dir=shared))
        assert modes(tmp_path)["tmp"] == 0o1777

    def test_a_database_is_private_from_its_first_moment(self, tmp_path: Path) -> None:
        database = Database(f"sqlite:///{tmp_path}/new/minillm.db")
        schema.upgrade(database.engine)
        with database.write():
            made = {path: mode for path, mode in modes(tmp_path / "new").items() if "lock" not in path}
        database.dispose()
        assert made["."] == 0o700 and made.pop(".") and set(made.values()) == {0o600}


class TestHidden:
    """A trainer runs under the user of the worker, and shall not read its secrets."""

    WAIT = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"

    @pytest.mark.parametrize("child", [False, True])
    def test_others_of_the_same_user_cannot_read_a_program_nor_its_forks(self, tmp_path: Path, child: bool) -> None:
        fork = "os.fork() and os.wait()" if child else "pass"
        code = f"import os, sys; from store import program; program.begin('worker'); {fork}; {self.WAIT}"
        with self._unprivileged(tmp_path, code) as reader_of:
            assert reader_of("open('/proc/{pid}/environ').read()") == "PermissionError"
            assert reader_of("open('/proc/{pid}/mem', 'rb').read(1)") == "PermissionError"

    def test_what_it_executes_can_be_read_again(self, tmp_path: Path) -> None:
        """Trainers are found by their environment."""
        execute = f"os.execv(sys.executable, [sys.executable, '-c', {self.WAIT!r}])"
        code = f"import os, sys; from store import program; program.hide_process(); {execute}"
        with self._unprivileged(tmp_path, code) as reader_of:
            assert reader_of("open('/proc/{pid}/environ').read()") == "read"

    @contextlib.contextmanager
    def _unprivileged(self, tmp_path: Path, code: str) -> Iterator[Callable[[str], str]]:
        """Run `code`, which prints a number of a process and waits; gives what another process of its user can do."""
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MINILLM_DATA_DIR": str(tmp_path / "data")}
        options: dict[str, Any] = {"env": environment, "cwd": tmp_path, "text": True}
        # Root reads everything by its capabilities, so both are without.
        without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
        program = subprocess.Popen(
            [*without, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
        )
        assert program.stdout is not None and program.stdin is not None
        pid = int(program.stdout.readline())

        def reader_of(expression: str) -> str:
            expression = expression.format(pid=pid)
            tried = f"import os\ntry: {expression}; print('read')\nexcept OSError as e: print(type(e).__name__)"
            done = subprocess.run([*without, sys.executable, "-S", "-c", tried], capture_output=True, **options)
            return done.stdout.strip()

        try:
            yield reader_of
        finally:
            program.stdin.close()
            program.wait(20)
            program.stdout.close()
