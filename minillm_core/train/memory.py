"""Freed memory stays with the process where the CPU trains.

A step frees what it allocated (activations, gradients, logits), and the next one needs as much
again. glibc gives large blocks back to the system at once, so that every page is cleared and mapped
anew in every step: about a fifth of a second for two hundred thousand pages (docs/performance.md).
What a measurement or a file took is not needed again for many steps, and is given back.

Weights lie in the pages of their file where they need no other format. Of those that were merged into
copies, nobody reads the file's pages again.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path

import torch

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MADV_PAGEOUT = 21
"""Linux's number; Python's mmap module does not name it."""
_LARGEST_BLOCK = 2**30
_LARGEST_REST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let malloc keep freed blocks of up to 1 GiB for reuse; False where this is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST_REST))


def give_back_freed_memory() -> None:
    """Return what malloc keeps to the system, between pieces of work that need memory of different shapes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def drop_mapped_pages(tensors: Iterable[torch.Tensor]) -> int:
    """Let go of the pages of those tensors that lie in a mapped file; returns how many bytes were named.

    Their values stay: what is read again comes back from the file. Other memory is left alone, which the system could
    only write to its swap. 0 where the system does not know this.
    """
    mapped = _mapped_files()
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if not mapped or madvise is None:
        return 0
    begins = [begin for begin, _ in mapped]
    dropped = 0
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.numel() == 0 or not tensor.is_contiguous():
            continue
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
        place = bisect.bisect_right(begins, begin) - 1
        if begin >= end or place < 0 or end > mapped[place][1]:
            continue
        if madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_PAGEOUT) == 0:
            dropped += end - begin
    return dropped


def _mapped_files() -> list[tuple[int, int]]:
    """First and last address of what is mapped from files, ascending."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            begin, _, end = addresses.partition("-")
            ranges.append((int(begin, 16), int(end, 16)))
    return ranges
