"""What this machine can do at best: the rate of a large matrix product and the bandwidth of its memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from minillm_core.rollout.projection import project, widens

_PRODUCT_WIDTH = 2048
_STREAM_BYTES = 512 * 2**20
_REPEATS = 4


def _fastest(call: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Seconds of the fastest call, after one that does not count."""
    call()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def decode_dtype() -> str:
    """The format in which few rows pass a weight faster here, in whatever form the decoder gives it."""
    rows_NI, weight_OI = torch.randn(8, _PRODUCT_WIDTH), torch.randn(_PRODUCT_WIDTH, _PRODUCT_WIDTH)
    taken = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        half = widens(dtype, weight_OI.device)
        computed = torch.float32 if half else dtype
        projection, x_NI = project(weight_OI.to(computed), half=half), rows_NI.to(computed)
        taken[name] = _fastest(lambda projection=projection, x_NI=x_NI: projection(x_NI))
    return min(taken, key=lambda name: taken[name])


def product_rate(dtype: torch.dtype, width: int = _PRODUCT_WIDTH) -> float:
    """Operations a second of a product of two square matrices, by the fastest library that torch has here."""
    a_NN, b_NN = (torch.randn(width, width).to(dtype) for _ in range(2))
    ways: list[Callable[[], object]] = [lambda: torch.mm(a_NN, b_NN)]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a_NN, b_NN, None, "none", [], ""))
    return 2 * width**3 / min(map(_fastest, ways))


def read_bandwidth(size: int = _STREAM_BYTES) -> float:
    """Bytes a second of reading memory that no cache holds."""
    stream = torch.ones(size // 4, dtype=torch.float32)
    return size / _fastest(stream.sum)
