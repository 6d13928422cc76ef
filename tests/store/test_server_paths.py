from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from minillm_core.spec import parse_event
from store.server_paths import ServerPaths
from store.settings import Settings


@pytest.fixture
def paths() -> ServerPaths:
    settings = Settings(data_dir=Path("/srv/mini llm/data"), models_root=Path("/mnt/models"))
    return ServerPaths(settings, {"HOME": "/nobody", "HF_HOME": "/cache/hf"})


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("there is no /srv/mini llm/data/runs/job_01m8/2/checkpoints/3-a: gone", "there is no checkpoints/3-a: gone"),
        ("elsewhere: /data/x/runs/job_01m8/12/spec.json", "elsewhere: spec.json"),
        ("PosixPath('/srv/mini llm/data/files/file_1')", "PosixPath('file_1')"),
        ("/srv/mini llm/data/minillm.db is locked", "minillm.db is locked"),
        ("(tried /mnt/models/teacher, /mnt/models)", "(tried teacher, models)"),
        ("/mnt/models-old/x and /mnt/modelsx", "/mnt/models-old/x and /mnt/modelsx"),
        ("/cache/hf/hub/models--a--b/snapshots/0/config.json", "models--a--b/snapshots/0/config.json"),
        ('  File "/opt/v/lib/python3.11/site-packages/torch/nn.py", line 3', '  File "torch/nn.py", line 3'),
        ('  File "/usr/local/lib/python3.11/json/decoder.py"', '  File "python3.11/json/decoder.py"'),
        ('  File "/work/app/minillm_core/run.py"', '  File "minillm_core/run.py"'),
        (f"{sys.prefix}/bin/python", "bin/python"),
        # What is no path of the server stays.
        ("/student/prune_teacher/layers, /dataset/file", "/student/prune_teacher/layers, /dataset/file"),
        ("hub:owner/minillm_core/x and a/b/site-packages/c", "hub:owner/minillm_core/x and a/b/site-packages/c"),
        ("https://huggingface.co/owner/model", "https://huggingface.co/owner/model"),
        ("half \ud800 of it", "half \ud800 of it"),
    ],
)
def test_folders_are_left_out(said: str, shown: str, paths: ServerPaths) -> None:
    assert paths.relative(said) == shown
    if said.isprintable():
        blanked = paths.blanked(said.encode())
        assert len(blanked) == len(said.encode()) and blanked.replace(b"\0", b"").decode() == shown


def test_long_lines_are_quick(paths: ServerPaths) -> None:
    for line in ("/a" * 200_000, "/" * 400_000, " /a" * 100_000, "/srv/mini llm/data/" * 20_000, "a/" * 200_000):
        assert "srv" not in paths.relative(line)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "failure", "failure": {"code": "x", "category": "user", "message": "at /mnt/models/a"}},
        {"type": "message", "code": "x", "message": "at /mnt/models/a", "data": {"path": ["/mnt/models/a"]}},
        {"type": "phase", "phase": "preparing", "message": "loading /mnt/models/a"},
        {
            "type": "student",
            "path": "student",
            "manifest_sha256": "0" * 64,
            "bytes": 1,
            "parameters": 1,
            "teacher_parameters": 1,
            "report": {"from": {"teacher": "/mnt/models/a"}},
        },
    ],
)
def test_whatever_a_trainer_says(event: dict[str, object], paths: ServerPaths) -> None:
    said = parse_event(json.dumps({"seq": 1, "time": "", **event}))
    shown = paths.relative_event(said)
    assert "/mnt" in said.model_dump_json() and "/mnt" not in shown.model_dump_json()
    assert type(shown) is type(said)
