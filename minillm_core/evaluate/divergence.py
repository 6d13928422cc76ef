"""How far the student is from the teacher, on given responses.

Both directions of the Kullback-Leibler divergence over the whole vocabulary, averaged over
tokens: on the dataset's responses it tells what teacher-forced training sees, on the student's
own samples what its users see. On own samples the reverse direction is the objective of MiniLLM
(arXiv 2306.08543, equation 1) per token. A low reverse KL alone proves nothing: it also falls
when a student collapses to short or repeated text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from minillm_core.evaluate.scoring import Scored, token_values
from minillm_core.objectives.divergences import divergence


@dataclass(frozen=True)
class Divergences:
    """Sums over tokens, nats; those of several ranks add up with :meth:`merged`."""

    reverse_kl: float = 0.0
    forward_kl: float = 0.0
    tokens: int = 0

    @classmethod
    def merged(cls, parts: Iterable[Divergences]) -> Divergences:
        parts = list(parts)
        return cls(
            sum(part.reverse_kl for part in parts),
            sum(part.forward_kl for part in parts),
            sum(part.tokens for part in parts),
        )

    def values(self, suffix: str) -> dict[str, float]:
        """``reverse_kl_<suffix>`` and ``forward_kl_<suffix>`` in nats per token; nothing without tokens."""
        if self.tokens == 0:
            return {}
        return {
            f"reverse_kl_{suffix}": self.reverse_kl / self.tokens,
            f"forward_kl_{suffix}": self.forward_kl / self.tokens,
        }


def measure_divergences(
    student: Scored,
    teacher: Scored,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    vocab: int | None = None,
    temperature: float = 1.0,
    batch_tokens: int = 8192,
) -> Divergences:
    """KL(student || teacher) and KL(teacher || student) summed over all response tokens.

    ``temperature`` divides the logits of both. Raises ValueError where a prompt is empty.
    """

    def compute(logits: tuple[torch.Tensor, ...], tokens_N: torch.Tensor) -> torch.Tensor:
        student_NV, teacher_NV = logits
        return torch.stack(
            [
                divergence("reverse_kl", student_NV, teacher_NV, temperature=temperature),
                divergence("forward_kl", student_NV, teacher_NV, temperature=temperature),
            ],
            dim=-1,
        )

    found = token_values(compute, [student, teacher], prompts, responses, vocab=vocab, batch_tokens=batch_tokens)
    tokens_N2 = torch.cat([values_L2 for values_L2 in found if len(values_L2) > 0] or [torch.zeros(0, 2)])
    reverse_kl, forward_kl = tokens_N2.sum(dim=0).tolist()
    return Divergences(reverse_kl, forward_kl, len(tokens_N2))
