"""What a sweep over the vocabulary is made of: heads, the terms of a loss, and what was found.

Axes: N tokens that count, of all rows joined; D hidden width (of the model named); V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minillm_core.objectives.divergences import Settings


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits: ``softcap * tanh((h @ weight.T + bias) / softcap)``."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    vocab: int | None = None
    """Rows of the weight that are real tokens; the rest is padding and never reaches the softmax."""
    adds_gradient: bool = False
    """Whether the backward pass adds the weight's gradient to the weight's ``.grad`` itself: for a leaf whose gradient
    is read there once the pass is over. Autograd makes one more tensor of its size where the weight is used twice."""

    @property
    def width(self) -> int:
        """V: real tokens."""
        rows = self.weight_VD.shape[0]
        if self.vocab is None:
            return rows
        if not 0 < self.vocab <= rows:
            raise ValueError(f"vocab must be 1 to {rows}, the rows of the head's weight, not {self.vocab}")
        return self.vocab

    @property
    def precision(self) -> torch.dtype:
        """Number format of the products: float32 (or float64) on a CPU, the weight's on an accelerator.

        Sums over the tokens and everything after the logits are float32 in any case.
        """
        dtype = self.weight_VD.dtype
        return torch.float32 if self.weight_VD.device.type == "cpu" and dtype != torch.float64 else dtype


@dataclass(frozen=True)
class TokenTerm:
    """A loss that depends on the student's log-probability of each target alone."""

    targets_N: Tensor
    evaluate: Callable[[Tensor, slice], tuple[Tensor, Tensor]]
    """From log q of some tokens and their place in N: their losses, and the derivatives by log q."""
    temperature: float = 1.0


@dataclass(frozen=True)
class DivergenceTerm:
    """A divergence from the teacher, each token with its weight (None: 1) times ``coefficient``."""

    kind: str
    hidden_ND: Tensor
    head: Head
    settings: Settings = field(default_factory=Settings)
    temperature: float = 1.0
    weights_N: Tensor | None = None
    coefficient: float = 1.0


@dataclass(frozen=True)
class Swept:
    """What a sweep found; fields of terms that were not there are empty."""

    logp_N: Tensor
    token_losses_N: Tensor
    divergences_N: Tensor
    entropies_N: Tensor
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None]
    """By hidden states, weight and bias, in the accumulation type; None where not needed."""
