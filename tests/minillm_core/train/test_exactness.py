"""What makes a step faster changes no loss: whole runs with each optimisation switched off, same seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minillm_core import minillm
from minillm_core.models import packed
from minillm_core.native import ops
from minillm_core.objectives import products
from minillm_core.train import student
from tests.minillm_core.tiny_runs import losses, run_here, write_run

SHORT = {"max_steps": 4, "rows_per_step": 8, "eval_every": 4, "learning_rate": 1e-3}


def padded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(packed, "packable", lambda model: False)


def layers_of_the_family(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(student, "use_fast_layers", lambda model: 0)


def all_tokens_to_the_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(student, "end_with_chosen_tokens", lambda model: False)


def products_of_torch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(products, "onednn_pays", lambda: False)
    patch.setattr(products, "kernels_pay", lambda: False)


def no_kernels(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ops, "load", lambda: None)


def rows_one_by_one(patch: pytest.MonkeyPatch) -> None:
    """One row a micro-batch, and three tokens a chunk of the loss."""
    patch.setattr("minillm_core.train.step.plan", lambda rows, budget: [[number] for number in range(len(rows))])
    plain = minillm.loss
    patch.setattr(minillm, "loss", lambda *given, **named: plain(*given, **named, chunk_tokens=3))


OFF: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], ...]] = {
    "padded": (padded,),
    "layers": (layers_of_the_family,),
    "last layer": (all_tokens_to_the_end,),
    "kernels": (no_kernels,),
    "all": (padded, layers_of_the_family, all_tokens_to_the_end, products_of_torch, no_kernels, rows_one_by_one),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    torch.manual_seed(0)
    return losses(run_here(write_run(tmp_path_factory.mktemp("on") / "run", training=SHORT)))


@pytest.mark.parametrize("name", OFF)
def test_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[float], name: str) -> None:
    for switch in OFF[name]:
        switch(monkeypatch)
    found = losses(run_here(write_run(tmp_path / "run", training=SHORT)))
    assert len(found) == len(expected) == 4
    assert found == pytest.approx(expected, abs=1e-4)
