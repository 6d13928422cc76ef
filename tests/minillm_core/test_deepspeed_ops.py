"""A machine whose Python has no headers trains all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from minillm_core.spec import ExitCode
from tests.minillm_core.tiny_runs import ROOT, environment, write_run

# Read by every interpreter that finds it on its path: the headers are looked up through these two.
HIDDEN_HEADERS = """
import sysconfig

_path, _paths = sysconfig.get_path, sysconfig.get_paths
_hidden = {"include": "/nonexistent", "platinclude": "/nonexistent"}
sysconfig.get_path = lambda name, *rest, **named: _hidden.get(name) or _path(name, *rest, **named)
sysconfig.get_paths = lambda *rest, **named: {**_paths(*rest, **named), **_hidden}
"""


def test_a_run_without_pythons_headers(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDDEN_HEADERS)
    folder = write_run(tmp_path / "run", method={"type": "sft"}, training={"max_steps": 2})
    done = subprocess.run(
        [sys.executable, "-m", "minillm_core", str(folder)],
        cwd=ROOT,
        env={
            **environment(),
            "PYTHONPATH": f"{tmp_path / 'site'}",
            "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == ExitCode.DONE, done.stderr[-3000:]
    assert "Python.h" in done.stderr and "python3-dev" in done.stderr
    assert (folder / "student" / "model.safetensors").is_file()
