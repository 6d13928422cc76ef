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

_BLOCK = 256
_JUST_BELOW_ONE = 1.0 - 2.0**-52
_SCORE_ELEMENTS = 4 << 20  # 16 MiB of float32: what the allocator keeps instead of returning it to the system


def _scaled(logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    scaled = logits_NV.float()
    return scaled if temperature == 1.0 else scaled / temperature


def draw(logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One token (B,) from ``softmax(logits / temperature)`` for each row, and its log-probability (B,), float32.

    ``uniform_B``: float64 in [0, 1). Sums are taken over blocks, then within the block that the number
    falls into, in float64 where it matters; a token whose probability is zero is never drawn.
    """
    z_BV = _scaled(logits_BV, temperature)
    top_B1 = z_BV.amax(dim=-1, keepdim=True)
    weight_BV = (z_BV - top_B1).exp_()
    vocab = weight_BV.shape[1]
    if vocab % _BLOCK:
        weight_BV = nn.functional.pad(weight_BV, (0, _BLOCK - vocab % _BLOCK))
    weight_BCK = weight_BV.unflatten(1, (-1, _BLOCK))
    mass_BC = weight_BCK.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    total_B1 = mass_BC[:, -1:]
    target_B1 = uniform_B.unsqueeze(1).clamp(max=_JUST_BELOW_ONE) * total_B1
    block_B1 = torch.searchsorted(mass_BC, target_B1, right=True).clamp_(max=mass_BC.shape[1] - 1)
    before_B1 = torch.where(block_B1 > 0, mass_BC.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BK = weight_BCK.gather(1, block_B1.unsqueeze(2).expand(-1, -1, _BLOCK)).squeeze(1)
    inside_BK = inside_BK.to(torch.float64).cumsum(dim=-1)
    # The two sums of one block may differ in the last bit: stay below the later one, so that an entry is found.
    rest_B1 = torch.minimum((target_B1 - before_B1).clamp_(min=0.0), inside_BK[:, -1:] * _JUST_BELOW_ONE)
    token_B1 = block_B1 * _BLOCK + torch.searchsorted(inside_BK, rest_B1, right=True)
    token_B1.clamp_(max=vocab - 1)  # only where the logits are nan, which the caller sees in the log-probability
    logp_B = (z_BV.gather(1, token_B1) - top_B1).squeeze(1) - total_B1.squeeze(1).log().float()
    return token_B1.squeeze(1), logp_B


def logp_of(logits_NV: torch.Tensor, token_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probability (N,), float32, of the given tokens under ``softmax(logits / temperature)``."""
    z_NV = _scaled(logits_NV, temperature)
    return z_NV.gather(1, token_N.unsqueeze(1)).squeeze(1) - z_NV.logsumexp(dim=-1)


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
