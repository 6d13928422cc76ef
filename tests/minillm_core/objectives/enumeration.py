"""A language so small that every response can be listed: expectations are sums, not samples.

A response ends at its first eos (token 0) or at the longest length. Student and teacher are
recurrent networks with shared weights, so that a gradient at one position moves all others.

Axes: S responses, T positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_core import minillm
from minillm_core.objectives.policy_gradient import importance_weights, rewards_to_go, token_rewards
from minillm_core.objectives.terms import Head
from minillm_core.spec import MiniLLM

EOS = 0


def responses(vocab: int, length: int) -> tuple[Tensor, Tensor]:
    """Every response (S, T) and its mask: the first eos counts, what follows does not."""
    rows, masks = [], []
    for size in range(length):
        for body in itertools.product(range(1, vocab), repeat=size):
            rows.append([*body, EOS] + [EOS] * (length - size - 1))
            masks.append([1] * (size + 1) + [0] * (length - size - 1))
    for body in itertools.product(range(1, vocab), repeat=length):
        rows.append(list(body))
        masks.append([1] * length)
    return torch.tensor(rows), torch.tensor(masks, dtype=torch.bool)


class Model(torch.nn.Module):
    """Hidden states (S, T, D) that predict each token from those before it, in float64."""

    def __init__(self, vocab: int, width: int, seed: int, spread: float) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.input, self.inner, self.output = (
            torch.nn.Parameter(spread * torch.randn(*shape, generator=random, dtype=torch.float64))
            for shape in ((vocab + 1, width), (width, width), (vocab, width))
        )

    def forward(self, ids_ST: Tensor) -> Tensor:
        start = torch.full((len(ids_ST), 1), self.input.shape[0] - 1)
        state, states = 0.0, []
        for embedded in self.input[torch.cat([start, ids_ST[:, :-1]], 1)].unbind(1):
            state = torch.tanh(embedded + (state @ self.inner if len(states) else 0.0))
            states.append(state)
        return torch.stack(states, 1)

    def logp(self, ids_ST: Tensor) -> Tensor:
        """log-probability (S, T) of each token."""
        return (self(ids_ST) @ self.output.T).log_softmax(-1).gather(-1, ids_ST.unsqueeze(-1)).squeeze(-1)


@dataclass
class World:
    """Student, teacher and every response; ``spread`` is how far the models are from uniform, and from each other."""

    vocab: int = 3
    length: int = 3
    spread: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.ids_ST, self.mask_ST = responses(self.vocab, self.length)
        self.student = Model(self.vocab, 4, 2 * self.seed, self.spread)
        self.teacher = Model(self.vocab, 5, 2 * self.seed + 1, self.spread).requires_grad_(False)
        self.student_logp_ST = self.student.logp(self.ids_ST).detach() * self.mask_ST
        self.teacher_logp_ST = self.teacher.logp(self.ids_ST) * self.mask_ST

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.student.parameters())

    def exact_gradient(self) -> Tensor:
        """Gradient of KL(q || p) over whole responses, by its definition."""
        logq_S = (self.student.logp(self.ids_ST) * self.mask_ST).sum(1)
        loss = (logq_S.exp() * (logq_S - self.teacher_logp_ST.sum(1))).sum()
        return flat(torch.autograd.grad(loss, self.parameters, materialize_grads=True))

    def probability(self, alpha: float) -> Tensor:
        """Of each response (S,) when every token is drawn from (1 - alpha) q + alpha p."""
        mixed_ST = (1 - alpha) * self.student_logp_ST.exp() + alpha * self.teacher_logp_ST.exp()
        return torch.where(self.mask_ST, mixed_ST, 1.0).prod(1)

    def step_weights(self, alpha: float) -> Tensor:
        """q / ((1 - alpha) q + alpha p) of each token (S, T), 1 where masked."""
        weights_ST = importance_weights(self.student_logp_ST, self.teacher_logp_ST, alpha=alpha)
        return torch.where(self.mask_ST, weights_ST, 1.0)

    def gradient(
        self,
        rows_S: Tensor | slice,
        factors_S: Tensor,
        *,
        long_weights_ST: Tensor,
        single_weights_ST: Tensor,
        reward_weights_ST: Tensor | None = None,
        long_part: bool = True,
        single_step: bool = True,
        start: str = "next",
        baseline: float = 0.0,
    ) -> Tensor:
        """Gradient of the MiniLLM loss of the given responses, each times its factor.

        No discount, no length normalisation, no whitening, no clip.
        """
        ids_ST, mask_ST = self.ids_ST[rows_S], self.mask_ST[rows_S]
        student_ST, teacher_ST = self.student_logp_ST[rows_S], self.teacher_logp_ST[rows_S]
        rewards_ST = token_rewards(teacher_ST, student_ST, mask_ST)
        if reward_weights_ST is not None:
            rewards_ST = rewards_ST * reward_weights_ST[rows_S]
        returns_ST = rewards_to_go(rewards_ST, mask_ST, start=start, length_norm=False) - baseline
        advantages_ST = returns_ST * factors_S[:, None]
        settings = MiniLLM(
            type="minillm", clip=False, long_part=long_part, single_step=single_step, single_step_weighted=True
        ).resolved()
        # Each part with weights of its own: the trainer gives both the same.
        parts = [
            (settings.model_copy(update={"single_step": False}), long_weights_ST[rows_S]),
            (settings.model_copy(update={"long_part": False}), single_weights_ST[rows_S] * factors_S[:, None]),
        ]
        total = sum(
            minillm.loss(
                self.student(ids_ST)[mask_ST],
                Head(self.student.output),
                ids_ST[mask_ST],
                part,
                teacher_hidden_ND=self.teacher(ids_ST)[mask_ST],
                teacher_head=Head(self.teacher.output),
                old_logp_N=student_ST[mask_ST],
                advantages_N=advantages_ST[mask_ST],
                weights_N=weights_ST[mask_ST],
                chunk_tokens=7,
            ).total
            for part, weights_ST in parts
        )
        return flat(torch.autograd.grad(total, self.parameters, materialize_grads=True))


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])
