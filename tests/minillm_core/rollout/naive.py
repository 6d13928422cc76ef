"""Mixed sampling as one writes it down first: both models at every token, rows apart, no cache.

The oracle of the tests; torch.multinomial draws, so that nothing is shared with what is tested.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


def next_logp(model: PreTrainedModel, tokens: list[int], vocab: int, temperature: float) -> torch.Tensor:
    """Log-probabilities (V,) of the token after ``tokens``."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1, :vocab]
    return (logits.float() / temperature).log_softmax(dim=-1)


def response_logp(
    model: PreTrainedModel, prompt: list[int], response: list[int], vocab: int, temperature: float
) -> torch.Tensor:
    """Log-probability (T,) of each response token."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
    logp = (logits[len(prompt) - 1 : -1, :vocab].float() / temperature).log_softmax(dim=-1)
    return logp.gather(1, torch.tensor(response).unsqueeze(1)).squeeze(1)


def mixture(
    student: PreTrainedModel, teacher: PreTrainedModel, tokens: list[int], alpha: float, vocab: int, temperature: float
) -> torch.Tensor:
    """(1 - alpha) q + alpha p of the next token, (V,)."""
    q = next_logp(student, tokens, vocab, temperature).exp()
    p = next_logp(teacher, tokens, vocab, temperature).exp()
    return (1 - alpha) * q + alpha * p


def response_law(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompt: list[int],
    *,
    alphas: Sequence[float],
    vocab: int,
    temperature: float,
    eos: int,
) -> dict[tuple[int, ...], float]:
    """Exact probability of every response: the whole tree of a small vocabulary.

    ``alphas``: share of the teacher at each position, as many as the longest response has tokens.
    """
    law: dict[tuple[int, ...], float] = {}
    for response in itertools.product(range(vocab), repeat=len(alphas)):
        ends = [index for index, token in enumerate(response) if token == eos]
        key = response[: ends[0] + 1] if ends else response
        if key in law:
            continue
        probability = 1.0
        for index, token in enumerate(key):
            known = prompt + list(key[:index])
            probability *= float(mixture(student, teacher, known, alphas[index], vocab, temperature)[token])
        law[key] = probability
    return law


def sample_naively(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: list[list[int]],
    *,
    alpha: float,
    vocab: int,
    temperature: float,
    limit: int,
    eos: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """One response for each prompt from the mixture, both models run at every token."""
    responses = []
    for prompt in prompts:
        response: list[int] = []
        while len(response) < limit and eos not in response:
            law = mixture(student, teacher, prompt + response, alpha, vocab, temperature)
            response.append(int(torch.multinomial(law, 1, generator=generator)))
        responses.append(response)
    return responses
