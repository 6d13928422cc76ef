import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from minillm_core.train.memory import drop_mapped_pages

PROGRAM = """
import ctypes, resource, sys
import torch
from minillm_core.train.memory import keep_freed_memory

assert keep_freed_memory()
faults = []
for _ in range(16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(50_000_000)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def test_memory_that_was_freed_is_not_mapped_anew():
    if sys.platform != "linux":
        return
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    first, *later = map(int, done.stdout.split())
    assert first > 1000
    # Small blocks may first settle in what was freed: then it is taken from another place once more.
    assert sum(later[-8:]) < first


def resident_of_files() -> int:
    """Bytes of mapped files that are resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


def test_pages_of_a_mapped_file_are_dropped_and_come_back(tmp_path: Path):
    if sys.platform != "linux":
        return
    weight = torch.arange(4_000_000, dtype=torch.float32)
    path = tmp_path / "model.safetensors"
    save_file({"weight": weight, "small": torch.ones(3)}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    mapped = load_file(path)
    assert torch.equal(mapped["weight"], weight)
    before = resident_of_files()
    named = drop_mapped_pages(mapped.values())
    assert 0.99 * 16e6 < named <= 16e6
    assert resident_of_files() < before - 8e6
    assert torch.equal(mapped["weight"], weight)


def test_memory_that_lies_in_no_file_is_left_alone():
    assert drop_mapped_pages([torch.ones(1_000_000), torch.empty(0), torch.ones(3, device="meta")]) == 0
