"""Drawing by inversion at the edges of the vocabulary and of the unit interval."""

from __future__ import annotations

import pytest
import torch

from minillm_core.rollout.draw import draw, logp_from_hidden, logp_of

pytestmark = pytest.mark.usefixtures("kernels")

ALMOST_ONE = 1.0 - 2.0**-53


@pytest.mark.parametrize("vocab", [1, 5, 256, 257, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_token_is_the_inverse_of_the_cumulative_distribution(vocab: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(300, vocab, generator=generator) * 2
    uniform = torch.rand(300, generator=generator, dtype=torch.float64)
    token, logp = draw(logits, uniform, temperature)
    law = (logits.double() / temperature).softmax(dim=-1)
    upto = law.cumsum(dim=-1).gather(1, token.unsqueeze(1)).squeeze(1)
    mass = law.gather(1, token.unsqueeze(1)).squeeze(1)
    assert (uniform < upto + 1e-6).all() and (uniform >= upto - mass - 1e-6).all()
    torch.testing.assert_close(logp, mass.log().float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logp_of(logits, token, temperature), logp, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.5, 0.75, ALMOST_ONE])
@pytest.mark.parametrize("possible", [[0], [299], [7, 290], [255, 256], [0, 299]])
def test_what_is_impossible_is_never_drawn(uniform: float, possible: list[int]) -> None:
    logits = torch.full((1, 300), -torch.inf)
    logits[0, possible] = torch.tensor([0.3, -0.2][: len(possible)])
    token, logp = draw(logits, torch.tensor([uniform], dtype=torch.float64), 1.0)
    assert int(token) in possible
    assert torch.isfinite(logp).all()
    if uniform == 0.0:
        assert int(token) == possible[0]
    if uniform == ALMOST_ONE:
        assert int(token) == possible[-1]


def test_half_precision_logits_are_read_as_they_are() -> None:
    logits = (torch.randn(4, 600) * 3).to(torch.bfloat16)
    token, logp = draw(logits, torch.rand(4, dtype=torch.float64), 1.0)
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp, logits.float().log_softmax(-1).gather(1, token.unsqueeze(1)).squeeze(1))


def test_nan_logits_give_a_nan_log_probability() -> None:
    token, logp = draw(torch.full((2, 300), torch.nan), torch.tensor([0.1, 0.9], dtype=torch.float64), 1.0)
    assert ((token >= 0) & (token < 300)).all()
    assert logp.isnan().all()


def test_scoring_in_pieces_is_scoring_at_once() -> None:
    weight = torch.randn(5 << 19, 2)  # so wide that a piece is one row
    hidden, token = torch.randn(5, 2), torch.tensor([0, 3, 17, 5, 2])
    widths: list[int] = []

    def logits(part: torch.Tensor, vocab: int) -> torch.Tensor:
        widths.append(part.shape[0])
        return part @ weight[:vocab].T

    pieces = logp_from_hidden(logits, hidden, token, vocab=weight.shape[0], temperature=2.0)
    assert widths == [1] * 5
    torch.testing.assert_close(pieces, logp_of(hidden @ weight.T, token, 2.0), atol=1e-4, rtol=1e-5)


def test_nothing_to_score() -> None:
    empty = logp_from_hidden(
        lambda part, vocab: part, torch.empty(0, 4), torch.empty(0, dtype=torch.long), vocab=4, temperature=1.0
    )
    assert empty.shape == (0,)
