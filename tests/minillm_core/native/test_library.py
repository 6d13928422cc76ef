"""Kernels are compiled once for a processor, and nothing fails where they cannot be."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from minillm_core.native import library

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and no library loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load.cache_clear()
    yield tmp_path / "minillm" / "kernels"
    library.load.cache_clear()


def compile_script(folder: Path, text: str) -> Path:
    """A program that stands where the compiler does."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.load() is not None
    (built,) = cache.iterdir()
    library.load.cache_clear()
    # Now a compiler that can only say which one it is.
    version = subprocess.run(["g++", "--version"], check=True, capture_output=True, text=True).stdout
    (cache.parent / "version").write_text(version)
    script = compile_script(cache.parent, f'[ "$1" = --version ] && exec cat {cache.parent}/version; exit 1')
    monkeypatch.setenv("CXX", str(script))
    assert library.load() is not None
    assert [built] == list(cache.iterdir())


def test_another_processor_compiles_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.load() is not None
    library.load.cache_clear()
    monkeypatch.setattr(library, "_processor", lambda: b"another")
    assert library.load() is not None
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("failure", ["missing", "broken", "useless"])
def test_without_a_compiler(
    cache: Path, failure: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    programs = {"broken": "echo no such flag >&2; exit 1", "useless": "exit 0"}
    chosen = tmp_path / "none" if failure == "missing" else compile_script(tmp_path, programs[failure])
    monkeypatch.setenv("CXX", str(chosen))
    with caplog.at_level(logging.WARNING):
        assert library.load() is None
    assert len(caplog.records) == 1
    assert not cache.exists() or not list(cache.iterdir())


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library.load() is not None


def test_two_processes_at_once(cache: Path) -> None:
    program = "from minillm_core.native.library import load; assert load() is not None"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    running = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert len(list(cache.iterdir())) == 1
