import pytest
import torch

from minillm_core.spec import RECIPES, TrainingSpec
from minillm_core.train.rounds import Round, TrainRow, derived_seed, mask_of, owned_rows, pad_tokens


def make_round(world: int, rank: int, *, rows: int = 24, per_step: int = 8, epochs: int = 3) -> Round:
    own = owned_rows(rows, per_step, rank, world)
    return Round(
        number=2,
        rows={row: TrainRow([row], [row]) for row in own},
        total_rows=rows,
        rows_per_step=per_step,
        inner_epochs=epochs,
        seed=5,
    )


def walk(round_: Round) -> list[list[int]]:
    steps = []
    while not round_.exhausted:
        steps.append([row.prompt_ids[0] for row in round_.next_rows()])
        round_.steps_done += 1
    return steps


def test_each_inner_epoch_uses_every_row_once():
    steps = walk(make_round(1, 0))
    assert len(steps) == 9
    for epoch in range(3):
        used = [row for step in steps[3 * epoch : 3 * epoch + 3] for row in step]
        assert sorted(used) == list(range(24))


def test_order_differs_between_inner_epochs():
    steps = walk(make_round(1, 0))
    assert steps[:3] != steps[3:6]


def test_order_differs_between_rounds():
    first, second = make_round(1, 0), make_round(1, 0)
    second.number += 1
    assert walk(first)[:3] != walk(second)[:3]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("world", [1, 2, 3, 7, 16, 64, 100])
def test_a_round_of_the_recipes_has_sixteen_steps_on_any_number_of_ranks(recipe, world):
    """256 rollouts, 64 rows a step, four passes, over all ranks together."""
    rows, epochs = RECIPES[recipe]["rollouts_per_round"], RECIPES[recipe]["inner_epochs"]
    per_step = TrainingSpec().rows_per_step
    assert (rows, epochs, per_step) == (256, 4, 64)
    shares = [walk(make_round(world, rank, rows=rows, per_step=per_step, epochs=epochs)) for rank in range(world)]
    assert [len(share) for share in shares] == [16] * world
    for step in range(16):
        assert sum(len(share[step]) for share in shares) == 64
        assert max(len(share[step]) for share in shares) == -(-64 // world)


@pytest.mark.parametrize("world", [2, 3, 4, 8, 9])
def test_a_step_has_the_same_rows_on_any_number_of_ranks(world):
    whole = walk(make_round(1, 0))
    shares = [walk(make_round(world, rank)) for rank in range(world)]
    for step, rows in enumerate(whole):
        parts = [share[step] for share in shares]
        assert sorted(row for part in parts for row in part) == sorted(rows)
        assert {len(part) for part in parts} <= {8 // world, -(-8 // world)}


def test_state_continues_in_the_middle(tmp_path):
    whole = make_round(1, 0)
    whole.rows[3].returns_T = torch.tensor([0.5])
    expected = walk(make_round(1, 0))
    whole.steps_done = 4
    torch.save(whole.state_dict(), tmp_path / "round.pt")
    again = Round.from_state(torch.load(tmp_path / "round.pt", weights_only=True))
    assert again.rows[3].returns_T is not None and again.rows[3].returns_T.tolist() == [0.5]
    assert walk(again) == expected[4:]


def test_padding_and_mask():
    padded = pad_tokens([torch.tensor([1.0, 2.0]), torch.tensor([])], 3)
    assert padded.tolist() == [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    assert mask_of([2, 0], 3).tolist() == [[True, True, False], [False, False, False]]


def test_derived_seeds_differ_by_purpose():
    assert derived_seed(1, "rows") != derived_seed(1, "order")
    assert derived_seed(1, "rows") == derived_seed(1, "rows")
    assert 0 <= derived_seed(0, "x") < 2**63
