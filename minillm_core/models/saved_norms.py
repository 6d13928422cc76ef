"""Outputs of norms that autograd would keep are computed again in the backward pass.

What follows a norm (query, key and value, or a gated layer) saves the norm's output; the norm itself saves its
input. So of the two, the output can go: the kernel makes it again from the input, bit for bit, in a fraction of a
millisecond, and a layer keeps a sixth less until its backward pass.

Axes: N tokens, D hidden width.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm_core.native import ops


@dataclass(frozen=True)
class _Again:
    """How to make a saved tensor again."""

    x: Tensor
    weight_D: Tensor
    eps: float
    shape: torch.Size


@dataclass(frozen=True)
class _Normed:
    """The newest output of a norm. While it lives nothing else lies at its address."""

    output: weakref.ref[Tensor]
    x: Tensor
    weight_D: Tensor
    eps: float

    def is_what(self, saved: Tensor) -> bool:
        output = self.output()
        return (
            output is not None
            and saved.data_ptr() == output.data_ptr()
            and saved.numel() == output.numel()
            and saved.dtype == output.dtype
            and saved.is_contiguous()
        )


class NormsComputedAgain(torch.autograd.graph.saved_tensors_hooks):
    """A context around a forward pass; the layers in it name their norms' outputs by :func:`note`."""

    def __init__(self) -> None:
        super().__init__(self._pack, self._unpack)
        self.newest: _Normed | None = None
        self._made: tuple[_Again, Tensor] | None = None

    def __enter__(self) -> None:
        super().__enter__()
        _ACTIVE.passes.append(self)

    def __exit__(self, *details: Any) -> None:
        _ACTIVE.passes.remove(self)
        self.newest = None
        super().__exit__(*details)

    def _pack(self, saved: Tensor) -> Tensor | _Again:
        newest = self.newest
        if newest is None or not newest.is_what(saved):
            return saved
        return _Again(newest.x, newest.weight_D, newest.eps, saved.shape)

    def _unpack(self, kept: Tensor | _Again) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if self._made is None or self._made[0].x is not kept.x:
            self._made = kept, ops.norm(kept.x, kept.weight_D, kept.eps)[0]
        return self._made[1].view(kept.shape)


class _Active(threading.local):
    def __init__(self) -> None:
        self.passes: list[NormsComputedAgain] = []


_ACTIVE = _Active()


def note(output: Tensor, x: Tensor, weight_D: Tensor, eps: float) -> None:
    """Say that ``output`` is :func:`.ops.norm` of ``x``, which the graph keeps, and that nobody writes to either."""
    if _ACTIVE.passes:
        _ACTIVE.passes[-1].newest = _Normed(weakref.ref(output), x.detach(), weight_D.detach(), eps)
