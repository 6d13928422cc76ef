"""Gradients of embedding and head that are added where they lie are those that autograd adds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from minillm_core.models.families import output_head, unwrapped
from tests.minillm_core.train.step_bench import (
    Models,
    assert_same,
    make_models,
    make_round,
    make_rows,
    method_of,
    step_gradient,
)


def both_ways(models: Models, name: str, blocks: torch.Tensor | None = None) -> None:
    method = method_of(name) if blocks is None else method_of(name, lm_coef=0.7)
    rows = make_round(models, method, make_rows()).next_rows()
    expected = step_gradient(models, method, rows, blocks=blocks)
    models.engine.module.add_gradients_in_place()
    assert_same(step_gradient(models, method, rows, blocks=blocks), expected)
    assert_same(step_gradient(models, method, rows, blocks=blocks, budget=30), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3", "gemma"])
def test_each_family(tmp_path: Path, family: str) -> None:
    both_ways(make_models(tmp_path, family), "minillm")


@pytest.mark.parametrize("tied", [True, False])
def test_tables_that_are_shared_or_not(tmp_path: Path, tied: bool) -> None:
    models = make_models(tmp_path)
    inner = unwrapped(models.student)
    table = inner.get_input_embeddings().weight
    inner.get_output_embeddings().weight = table if tied else nn.Parameter(table.detach().clone())
    assert (output_head(models.student).weight_VD is table) is tied
    both_ways(models, "kd")
    both_ways(models, "minillm", blocks=torch.randint(3, 300, (2, 9)))


def test_the_padding_token_gets_none(tmp_path: Path) -> None:
    models = make_models(tmp_path)
    embedding = unwrapped(models.student).get_input_embeddings()
    # A token of the first row's prompt.
    embedding.padding_idx = make_rows()[0].prompt_ids[0]
    both_ways(models, "minillm")
