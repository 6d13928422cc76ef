"""How slots share what the machine has."""

from __future__ import annotations

import pytest

from worker.devices import Gpu, SlotDevices, TooManySlots, chosen, share

FOUND = [Gpu(str(index), f"GPU-{index}", 100, 100) for index in range(4)]


def test_one_slot_has_everything() -> None:
    assert share(1, visible=None, cores=8, probe=lambda: FOUND) == [SlotDevices(8, None)]
    assert share(1, visible=("2", "3"), cores=8) == [SlotDevices(8, ("2", "3"))]


def test_accelerators_are_dealt_out_whole_and_cores_evenly() -> None:
    two = share(2, visible=None, cores=9, probe=lambda: FOUND)
    assert two == [SlotDevices(4, ("GPU-0", "GPU-1")), SlotDevices(4, ("GPU-2", "GPU-3"))]
    uneven = share(2, visible=("0", "1", "2"), cores=2)
    assert [devices.visible for devices in uneven] == [("0", "1"), ("2",)]


def test_slots_without_accelerators_share_the_cores() -> None:
    assert share(3, visible=None, cores=2, probe=lambda: []) == [SlotDevices(1, None)] * 3
    assert share(2, visible=(), cores=8) == [SlotDevices(4, ())] * 2


def test_more_slots_than_accelerators_are_refused_with_what_to_do() -> None:
    with pytest.raises(TooManySlots, match="--concurrency 4 at most, or -Q cpu"):
        share(5, visible=None, cores=8, probe=lambda: FOUND)


def test_names_as_cuda_takes_them() -> None:
    assert chosen("0, GPU-b,") == ("0", "GPU-b")
    assert chosen("") == ()
    assert chosen(None) is None
