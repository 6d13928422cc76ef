import pytest
import torch

from minillm_core.errors import SystemFault
from minillm_core.spec import FailureCategory
from minillm_core.train.distributed import Ranks


def test_more_ranks_than_accelerators_is_tried_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemFault) as raised:
        Ranks.start()
    failure = raised.value.failure()
    assert (failure.code, failure.param) == ("not_enough_gpus", "/resources/gpus")
    assert failure.category is FailureCategory.INFRASTRUCTURE


def test_a_group_of_one_answers_for_itself():
    ranks = Ranks.start()
    assert (ranks.rank, ranks.world, ranks.main) == (0, 1, True)
    assert ranks.sum([1.0, 2.5]) == [1.0, 2.5]
    assert ranks.gather("a") == ["a"] and ranks.broadcast("b") == "b" and ranks.max(3.0) == 3.0
    assert ranks.share(3) == [0, 1, 2]


def test_ranks_share_rows_evenly():
    device = torch.device("cpu")
    shares = [Ranks(rank, 3, device).share(8) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
