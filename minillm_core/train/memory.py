"""Freed memory stays with the process where the CPU trains.

A step frees what it allocated (activations, gradients, logits), and the next one needs as much
again. glibc gives large blocks back to the system at once, so that every page is cleared and mapped
anew in every step: about a fifth of a second for two hundred thousand pages (docs/performance.md).
What a measurement or a file took is not needed again for many steps, and is given back.
"""

from __future__ import annotations

import ctypes

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
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
