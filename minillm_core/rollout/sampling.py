"""Responses drawn from (1 - alpha) q + alpha p, with the log-probabilities of both models taken on the way.

Axes: B rows of one decoding batch, T response positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from minillm_core.rollout.decoder import Decoder


@dataclass
class RolloutCounters:
    """Work done by one call; tokens are positions that went through a forward pass, padding included where computed."""

    teacher_tokens: int = 0
    student_tokens: int = 0
    student_decode_steps: int = 0
    teacher_calls: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"prefill": 0.0, "decode": 0.0, "teacher": 0.0})


@dataclass
class Rollouts:
    """Sampled responses, one entry a row, in the order of the prompts."""

    prompt_ids: list[list[int]]
    response_ids: list[list[int]]
    """The first eos is an action that counts and is included; nothing follows it."""
    truncated: list[bool]
    """Whether the response ended without eos."""
    student_logp: list[torch.Tensor]
    """(T_i,) float32: log q of the sampled tokens under the distribution sampled from (temperature applied,
    shared vocabulary). With a teacher alone these are the teacher's own."""
    teacher_logp: list[torch.Tensor] | None
    """(T_i,) float32: log p likewise; None without a teacher."""
    teacher_hidden: list[torch.Tensor] | None
    """(T_i, D) final hidden states that predict each response token, in the teacher's number format."""
    counters: RolloutCounters


def sample(
    student: Decoder,
    teacher: Decoder | None,
    prompts: list[list[int]],
    *,
    alpha: float,
    max_new_tokens: int,
    temperature: float,
    eos_ids: Sequence[int],
    vocab: int,
    batch_rows: int,
    generator: torch.Generator,
    keep_teacher_hidden: bool,
    greedy: bool = False,
) -> Rollouts:
    """Sample one response for each prompt."""
    raise NotImplementedError
