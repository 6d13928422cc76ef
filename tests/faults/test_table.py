"""The table of docs/reliability.md names every fault, and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
FAULTS = 34


def test_every_fault_has_its_row_and_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, FAULTS + 1))
    assert all("`" in tests for _, tests in rows)


def test_the_tests_it_names_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", "\n".join(re.findall(r"\| ([^|]+) \|$", PAGE, re.MULTILINE)))
    assert len(named) > FAULTS
    missing = []
    for file, name in named:
        path = ROOT / "tests" / file
        if not path.is_file() or (name and f"def {name}(" not in path.read_text()):
            missing.append(f"{file}::{name}")
    assert missing == []


def test_the_files_it_names_exist() -> None:
    named = re.findall(r"`((?:api|store|worker|minillm_core)/[\w./]+)`", PAGE)
    assert [name for name in named if not (ROOT / name).exists()] == []
