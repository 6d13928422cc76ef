"""The tables of docs/algorithm.md hold the values of the code: recipes, guards, and the settings they name."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from minillm_core.spec import RECIPES, DatasetSpec, GuardSpec, MiniLLM, SeqKD, TrainingSpec

PAGE = (Path(__file__).parents[2] / "docs" / "algorithm.md").read_text()
UNLISTED = {"top_k", "top_p"}
"""Off in every recipe and refused otherwise."""


def table(first: str) -> list[list[str]]:
    """Cells of the rows of the table whose head begins with ``first``."""
    lines = PAGE[PAGE.index(f"\n| {first} |") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def value(cell: str) -> Any:
    words = {"on": True, "off": False, "null": None, "true": True}
    return words[cell] if cell in words else float(cell) if re.fullmatch(r"[\d.]+", cell) else cell


def listed() -> dict[str, dict[str, Any]]:
    """The table of settings as recipe -> setting -> value."""
    found: dict[str, dict[str, Any]] = {recipe: {} for recipe in ("default", "paper", "reference")}
    for names, _, *cells in table("setting"):
        for recipe, cell in zip(found, cells, strict=True):
            for name, one in zip(re.findall(r"`(\w+)`", names), cell.split(", "), strict=True):
                found[recipe][name] = value(one)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes(recipe: str) -> None:
    page = listed()[recipe]
    # The one setting whose `off` is a word.
    page["whitening"] = page["whitening"] or "off"
    assert page == {name: one for name, one in RECIPES[recipe].items() if name not in UNLISTED}
    resolved = MiniLLM(type="minillm", recipe=recipe).resolved()  # type: ignore[arg-type]
    assert {name: getattr(resolved, name) for name in page} == page


def test_a_setting_given_goes_before_the_recipes() -> None:
    resolved = MiniLLM(type="minillm", recipe="reference", gamma=1.0, reward_start="next").resolved()
    assert (resolved.gamma, resolved.reward_start, resolved.whitening) == (1.0, "next", "padded")


@pytest.mark.parametrize(("given", "clip"), [(None, 100.0), (3.0, 3.0), ("off", None)])
def test_a_clip_of_the_rewards_can_be_taken_from_a_recipe(given: Any, clip: float | None) -> None:
    method = MiniLLM(type="minillm", recipe="reference", reward_clip=given)
    assert method.resolved().reward_clip == clip
    assert MiniLLM.model_validate(method.model_dump(mode="json")) == method, "as it is stored, and read again"


def test_every_setting_can_be_set_against_its_recipe() -> None:
    """The values of one recipe, given to a job of another, give that recipe."""
    for wanted, other in itertools.permutations(RECIPES, 2):
        given = {name: "off" if value is None else value for name, value in RECIPES[wanted].items()}
        resolved = MiniLLM(type="minillm", recipe=other, **given).resolved()  # type: ignore[arg-type]
        assert resolved.model_dump(exclude={"recipe"}) == RECIPES[wanted]


def test_every_difference_names_its_setting() -> None:
    rows = table("| paper | published code | setting")
    assert [row[0] for row in rows] == [str(number) for number in range(1, 13)]
    known = {name for model in (MiniLLM, SeqKD, TrainingSpec, DatasetSpec) for name in model.model_fields}
    for row in rows:
        named = re.findall(r"`(\w+)`", row[3])
        assert named and {*named} - {"seqkd"} <= known
    differing = {name for name in RECIPES["paper"] if RECIPES["paper"][name] != RECIPES["reference"][name]}
    assert differing <= {name for row in rows for name in re.findall(r"`(\w+)`", row[3])}


def test_the_guards() -> None:
    page = {name.strip("`"): value(default) for name, _, default in table("`guards`")}
    assert page == GuardSpec().model_dump()
