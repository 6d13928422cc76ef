"""Micro-batches hold every row once within the budget; masks come from lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm_core.data.batching import pad_rows, plan_microbatches


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_plan_is_a_partition_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = plan_microbatches(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[row] for row in group)
        assert len(group) == 1 or len(group) * longest <= budget
    flat = [lengths[row] for group in groups for row in group]
    assert flat == sorted(flat, reverse=True)


def test_plan_fills_groups() -> None:
    assert plan_microbatches([4, 4, 2, 2, 9, 1], 8) == [[4], [0, 1], [2, 3, 5]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_masks_are_told_by_lengths_not_by_ids(side: str) -> None:
    eos = 2
    # eos inside a prompt, as padding, as whole response; one token; nothing at all.
    prompts, responses = [[5, eos, 6], [eos], [7, 8]], [[eos], [9, 9, 9, eos], []]
    batch = pad_rows(prompts, responses, pad_id=eos, side=side)
    assert batch.input_ids_BT.shape == (3, 5)
    assert batch.attention_mask_BT.sum(1).tolist() == [4, 5, 2]
    assert batch.response_mask_BT.sum(1).tolist() == [1, 4, 0]
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        there = batch.attention_mask_BT[index].bool()
        assert batch.input_ids_BT[index][there].tolist() == [*prompt, *response]
        assert batch.position_ids_BT[index][there].tolist() == list(range(len(prompt) + len(response)))
        assert batch.input_ids_BT[index][batch.response_mask_BT[index]].tolist() == response
        predicting = batch.predicts_response_BT[index].nonzero().flatten()
        assert batch.input_ids_BT[index][predicting + 1].tolist() == response
        assert there[predicting].all()
    assert batch.attention_mask_BT[0, 0 if side == "right" else -1] == 1


def test_no_tokens() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        pad_rows([[]], [[]], pad_id=0)
