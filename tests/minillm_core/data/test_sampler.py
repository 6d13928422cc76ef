"""The order of the rows is endless, random and can be continued."""

from __future__ import annotations

import pytest

from minillm_core.data.sampler import EpochCursor


def test_each_epoch_takes_every_row_once_in_a_new_order() -> None:
    cursor = EpochCursor(10, seed=3)
    epochs = [cursor.take(10) for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_size_of_the_bites_changes_nothing() -> None:
    one, many = EpochCursor(7, seed=0), EpochCursor(7, seed=0)
    assert one.take(40) == [row for k in (1, 0, 6, 20, 13) for row in many.take(k)]
    assert EpochCursor(7, seed=1).take(40) != EpochCursor(7, seed=0).take(40)


@pytest.mark.parametrize("taken", [0, 3, 7, 12])
def test_resume_continues(taken: int) -> None:
    cursor = EpochCursor(7, seed=5)
    cursor.take(taken)
    resumed = EpochCursor(7, seed=5)
    resumed.load_state_dict(cursor.state_dict())
    assert resumed.take(20) == cursor.take(20)


def test_a_foreign_state_is_refused() -> None:
    state = EpochCursor(7, seed=5).state_dict()
    with pytest.raises(ValueError, match="7 rows"):
        EpochCursor(8, seed=5).load_state_dict(state)
    with pytest.raises(ValueError, match="no rows"):
        EpochCursor(0, seed=5)
