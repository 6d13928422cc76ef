"""Drawing tokens from logits and reading log-probabilities, in float32.

A token is the inverse of the cumulative distribution at a uniform number that was drawn for its
row and position beforehand: what a row gets does not depend on who else is in the batch. (One
exponential per vocabulary entry, the other usual way, costs as much as the model itself.)

Axes: B rows, N tokens, V vocabulary, C blocks of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from minillm_core.native import ops

_BLOCK = 256
_JUST_BELOW_ONE = 1.0 - 2.0**-52
_SCORE_ELEMENTS = 4 << 20  # 16 MiB of float32: what the allocator keeps instead of returning it to the system


def _scaled(logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits_NV if temperature == 1.0 else logits_NV.float() / temperature


def _rows(logits_NV: torch.Tensor) -> torch.Tensor:
    """The logits with those of a row side by side in memory."""
    return logits_NV if logits_NV.stride(-1) == 1 else logits_NV.contiguous()


def draw(logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token (B,) from ``softmax(logits / temperature)`` for each row, and its log-probability (B,), float32.

    ``uniform_B``: float64 in [0, 1). Sums are taken over blocks, then within the block that the number
    falls into, in float64 where it matters; a token whose probability is zero is never drawn. Logits that are not
    numbers give some token and a log-probability that is none.
    """
    if ops.fits(logits_BV, half=True):
        return ops.draw(_rows(logits_BV), uniform_B, temperature)
    mass_BV = torch.softmax(_scaled(logits_BV, temperature), dim=-1, dtype=torch.float32)
    vocab = mass_BV.shape[1]
    blocks_BV = nn.functional.pad(mass_BV, (0, -vocab % _BLOCK)) if vocab % _BLOCK else mass_BV
    mass_BCK = blocks_BV.unflatten(1, (-1, _BLOCK))
    upto_BC = mass_BCK.sum(dim=-1).to(torch.float64).cumsum(dim=-1)
    target_B1 = uniform_B.unsqueeze(1).clamp(max=_JUST_BELOW_ONE) * upto_BC[:, -1:]
    block_B1 = torch.searchsorted(upto_BC, target_B1, right=True).clamp_(max=upto_BC.shape[1] - 1)
    before_B1 = torch.where(block_B1 > 0, upto_BC.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BK = mass_BCK.gather(1, block_B1.unsqueeze(2).expand(-1, -1, _BLOCK)).squeeze(1)
    inside_BK = inside_BK.to(torch.float64).cumsum(dim=-1)
    # The two sums of one block may differ in the last bits: stay below the later one, so that an entry is found.
    rest_B1 = torch.minimum((target_B1 - before_B1).clamp_(min=0.0), inside_BK[:, -1:] * _JUST_BELOW_ONE)
    token_B1 = block_B1 * _BLOCK + torch.searchsorted(inside_BK, rest_B1, right=True)
    token_B1.clamp_(max=vocab - 1)  # only where the logits are nan, which the caller sees in the log-probability
    return token_B1.squeeze(1), mass_BV.gather(1, token_B1).squeeze(1).log()


def logp_of(logits_NV: torch.Tensor, token_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probability (N,), float32, of the given tokens under ``softmax(logits / temperature)``."""
    if ops.fits(logits_NV, half=True):
        return ops.logp(_rows(logits_NV), token_N, temperature)
    z_NV = _scaled(logits_NV, temperature).float()
    top_N1 = z_NV.amax(dim=-1, keepdim=True)
    chosen_N1 = z_NV.gather(1, token_N.unsqueeze(1)) - top_N1
    return chosen_N1.squeeze(1) - (z_NV - top_N1).exp_().sum(dim=-1).log()


def logp_from_hidden(
    logits: Callable[[torch.Tensor, int], torch.Tensor],
    hidden_ND: torch.Tensor,
    token_N: torch.Tensor,
    *,
    vocab: int,
    temperature: float,
) -> torch.Tensor:
    """:func:`logp_of` of the logits that ``logits(hidden, vocab)`` gives, never holding many rows of them."""
    rows = max(1, _SCORE_ELEMENTS // vocab)
    parts = [
        logp_of(logits(hidden, vocab), token, temperature)
        for hidden, token in zip(hidden_ND.split(rows), token_N.split(rows), strict=True)
    ]
    return torch.cat(parts) if parts else torch.empty(0, device=hidden_ND.device)
